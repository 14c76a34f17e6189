// Answers
const OUTCOMES = [["every answer", () => true], ["wrong", (answer) => answer.score !== null && answer.score < 1], ["right", (answer) => answer.score === 1],
  ["not scored", (answer) => answer.score === null], ...data.flags.map((flag) => [flag, (answer) => answer.flags.includes(flag)])];
function outcome(answer) { return answer.score === null ? "not scored" : answer.score === 1 ? "right" : answer.whole ? "wrong" : (100 * answer.score).toFixed(1); }
function mark(answer) { return make("span", outcome(answer), "mark" + (answer.score === 1 ? " right" : answer.score !== null ? " wrong" : "")); }
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
function candidates(answer) {
  const box = make("table", undefined, "candidates");
  const head = box.createTHead().insertRow();
  for (const name of ["", "score", "candidate, token by token"]) head.append(make("th", name));
  const body = box.createTBody();
  answer.candidates.forEach(([text, score, pieces, right]) => {
    const line = body.insertRow();
    line.append(make("td", (text === answer.answer ? "▸" : "") + (right ? "✓" : ""), right ? "right" : "wrong"), make("td", score === null ? "–" : score.toFixed(3), "n"));
    const cell = line.insertCell();
    if (pieces.length) cell.append(tokens(pieces)); else cell.append(make("span", text, "told"));
  });
  return box;
}
function show(answer) {
  const pairs = [["task", data.tasks[answer.task]], ["prompt", answer.id], ["metric", `${answer.metric}: ${answer.score === null ? "–" : (100 * answer.score).toFixed(1)}`],
    ["answer", answer.answer === null ? "–" : answer.answer || "(empty)"], ...answer.references.map((text) => ["reference", text])];
  if (answer.flags.length) pairs.push(["remarks", answer.flags.join(", ")]);
  const nodes = [facts(pairs)];
  if (answer.candidates.length) nodes.push(candidates(answer));
  nodes.push(make("h3", "Prompt"), make("pre", answer.prompt));
  return nodes;
}
function line(answer) {
  const node = make("li");
  node.append(mark(answer), make("span", " " + data.tasks[answer.task]), make("br"), make("span", (answer.answer ?? "").slice(0, 80) || "(empty)", "dim"));
  return node;
}
if (at("search")) {
  browseAnswers(data.samples, OUTCOMES, (answer) => `${answer.id} ${answer.prompt} ${answer.answer} ${answer.references.join(" ")}`, line, show);
}
