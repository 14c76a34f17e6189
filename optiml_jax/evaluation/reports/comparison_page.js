const [first, second] = data.names;
const change = (pair) => pair.sides[1].score - pair.sides[0].score;
const OUTCOMES = [["scored differently", (pair) => change(pair) !== 0], [`${second} better`, (pair) => change(pair) > 0], [`${second} worse`, (pair) => change(pair) < 0],
  ["answered differently", (pair) => pair.sides[0].answer !== pair.sides[1].answer], ["every answer", () => true]];
const score = (x) => (100 * x).toFixed(1);
function side(name, answer) {
  const box = make("div", undefined, "side " + (answer.score === 1 ? "right" : "wrong"));
  box.append(make("div", `${name}: ${score(answer.score)}`, "dim"), make("div", answer.answer || "(empty)", "told"));
  if (answer.candidates.length) {
    const table = make("table");
    for (const [text, value] of answer.candidates) {
      const row = table.insertRow();
      row.append(make("td", value.toFixed(3), "n"), make("td", text));
    }
    box.append(table);
  }
  return box;
}
function show(pair) {
  const sides = make("div", undefined, "sides");
  data.names.forEach((name, i) => sides.append(side(name, pair.sides[i])));
  const pairs = [["task", data.tasks[pair.task]], ["prompt", pair.id], ...pair.references.map((text) => ["reference", text])];
  return [facts(pairs), sides, make("h3", "Prompt"), make("pre", pair.prompt)];
}
function line(pair) {
  const node = make("li");
  const difference = change(pair);
  node.append(make("span", difference > 0 ? "better" : difference < 0 ? "worse" : "alike", "mark" + (difference > 0 ? " right" : difference < 0 ? " wrong" : "")), make("span", " " + data.tasks[pair.task]), make("br"),
    make("span", `${pair.sides[0].answer.slice(0, 40) || "(empty)"} → ${pair.sides[1].answer.slice(0, 40) || "(empty)"}`, "dim"));
  return node;
}
browseAnswers(data.pairs, OUTCOMES, (pair) => `${pair.id} ${pair.prompt} ${pair.sides[0].answer} ${pair.sides[1].answer}`, line, show);
