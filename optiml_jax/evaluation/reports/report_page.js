// Answers
const OUTCOMES = [["every answer", () => true], ["wrong", (one) => one.score !== null && one.score < 1], ["right", (one) => one.score === 1],
  ["not scored", (one) => one.score === null], ...data.flags.map((flag) => [flag, (one) => one.flags.includes(flag)])];
function outcome(one) { return one.score === null ? "not scored" : one.score === 1 ? "right" : one.whole ? "wrong" : (100 * one.score).toFixed(1); }
function mark(one) { return make("span", outcome(one), "mark" + (one.score === 1 ? " right" : one.score !== null ? " wrong" : "")); }
function tokens(pairs) {
  const box = make("span");
  for (const [text, score] of pairs) {
    const tone = score > -0.7 ? "t1" : score > -2.3 ? "t2" : score > -6 ? "t3" : "t4";
    const piece = make("span", text, "token " + tone);
    piece.title = `${score.toFixed(3)}, probability ${percent(Math.exp(score))}`;
    box.append(piece);
  }
  return box;
}
function candidates(one) {
  const box = make("table", undefined, "candidates");
  const head = box.createTHead().insertRow();
  for (const name of ["", "score", "candidate, token by token"]) head.append(make("th", name));
  const body = box.createTBody();
  one.candidates.forEach(([text, score, pieces, right]) => {
    const line = body.insertRow();
    line.append(make("td", (text === one.answer ? "▸" : "") + (right ? "✓" : ""), right ? "right" : "wrong"), make("td", score === null ? "–" : score.toFixed(3), "n"));
    const cell = line.insertCell();
    if (pieces.length) cell.append(tokens(pieces)); else cell.append(make("span", text, "told"));
  });
  return box;
}
function show(one) {
  const pairs = [["task", data.tasks[one.task]], ["prompt", one.id], ["metric", `${one.metric}: ${one.score === null ? "–" : (100 * one.score).toFixed(1)}`],
    ["answer", one.answer === null ? "–" : one.answer || "(empty)"], ...one.references.map((text) => ["reference", text])];
  if (one.flags.length) pairs.push(["remarks", one.flags.join(", ")]);
  const shown = [facts(pairs)];
  if (one.candidates.length) shown.push(candidates(one));
  shown.push(make("h3", "Prompt"), make("pre", one.prompt));
  return shown;
}
function line(one) {
  const made = make("li");
  made.append(mark(one), make("span", " " + data.tasks[one.task]), make("br"), make("span", (one.answer ?? "").slice(0, 80) || "(empty)", "dim"));
  return made;
}
if (at("search")) {
  browseAnswers(data.samples, OUTCOMES, (one) => `${one.id} ${one.prompt} ${one.answer} ${one.references.join(" ")}`, line, show);
}
