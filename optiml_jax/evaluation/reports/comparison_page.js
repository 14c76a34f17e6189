const [first, second] = data.names;
const change = (one) => one.sides[1].score - one.sides[0].score;
const OUTCOMES = [["scored differently", (one) => change(one) !== 0], [`${second} better`, (one) => change(one) > 0], [`${second} worse`, (one) => change(one) < 0],
  ["answered differently", (one) => one.sides[0].answer !== one.sides[1].answer], ["every answer", () => true]];
const score = (x) => (100 * x).toFixed(1);
function side(name, one) {
  const box = make("div", undefined, "side " + (one.score === 1 ? "right" : "wrong"));
  box.append(make("div", `${name}: ${score(one.score)}`, "dim"), make("div", one.answer || "(empty)", "told"));
  if (one.candidates.length) {
    const table = make("table");
    for (const [text, value] of one.candidates) {
      const row = table.insertRow();
      row.append(make("td", value.toFixed(3), "n"), make("td", text));
    }
    box.append(table);
  }
  return box;
}
function show(one) {
  const sides = make("div", undefined, "sides");
  data.names.forEach((name, i) => sides.append(side(name, one.sides[i])));
  const pairs = [["task", data.tasks[one.task]], ["prompt", one.id], ...one.references.map((text) => ["reference", text])];
  return [facts(pairs), sides, make("h3", "Prompt"), make("pre", one.prompt)];
}
function line(one) {
  const made = make("li");
  const by = change(one);
  made.append(make("span", by > 0 ? "better" : by < 0 ? "worse" : "alike", "mark" + (by > 0 ? " right" : by < 0 ? " wrong" : "")), make("span", " " + data.tasks[one.task]), make("br"),
    make("span", `${one.sides[0].answer.slice(0, 40) || "(empty)"} → ${one.sides[1].answer.slice(0, 40) || "(empty)"}`, "dim"));
  return made;
}
browseAnswers(data.pairs, OUTCOMES, (one) => `${one.id} ${one.prompt} ${one.sides[0].answer} ${one.sides[1].answer}`, line, show);
