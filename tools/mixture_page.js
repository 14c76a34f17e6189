const short = (x) => (x < 10 ? x.toFixed(2) : x < 100 ? x.toFixed(1) : count(Math.round(x)));
const FORMS = [String, String, String, count, count, percent, percent, count, short, short];

// Shares of benchmarks and categories
for (const kind of ["benchmarks", "categories"]) {
  const maximum = Math.max(...data[kind].flatMap((row) => [row[2], row[3]]));
  for (const [name, tasks, before, after] of data[kind]) {
    const bar = make("div", undefined, "bar");
    for (const [share, tone] of [[before, "pale"], [after, ""]]) {
      const line = make("i", undefined, tone);
      line.style.width = (100 * share) / maximum + "%";
      bar.append(line);
    }
    const label = make("span", name);
    bar.title = label.title = `${name}: ${count(tasks)} tasks, ${percent(before)} of the examples, ${percent(after)} of the draws`;
    at(kind).append(label, make("span", percent(before), "n dim"), make("span", percent(after), "n"), bar);
  }
}

const bare = (task) => (task[0].startsWith(task[1] + ".") ? task[0].slice(task[1].length + 1) : task[0]);

// The table of tasks: sorted by a click on a column, filtered by words
let order = { column: 6, down: true };
function fillTasks() {
  const words = wordsOf(at("filter"));
  const rows = data.tasks.map((task, index) => [task, index])
    .filter(([task]) => words.every((word) => task.slice(0, 3).join(" ").toLowerCase().includes(word)));
  const sign = order.down ? -1 : 1;
  rows.sort(([a], [b]) => sign * (a[order.column] < b[order.column] ? -1 : a[order.column] > b[order.column] ? 1 : 0));
  at("body").replaceChildren(...rows.slice(0, 500).map(([task, index]) => {
    const line = make("tr");
    task.forEach((cell, i) => line.append(make("td", i ? FORMS[i](cell) : bare(task), i > 2 ? "n" : "")));
    line.title = task[0];
    line.addEventListener("click", () => { listPrompts(data.prompts.filter((prompt) => prompt.task === index)); location.hash = "prompts"; });
    return line;
  }));
  at("shown").textContent = `${count(rows.length)} of ${count(data.tasks.length)} tasks` + (rows.length > 500 ? ", the first 500 shown" : "");
  [...at("head").children].forEach((cell, i) =>
    i === order.column ? cell.setAttribute("aria-sort", order.down ? "descending" : "ascending") : cell.removeAttribute("aria-sort"));
}
data.columns.forEach(([name, meaning], i) => {
  const cell = make("th", name, i > 2 ? "n" : "");
  cell.title = meaning;
  cell.addEventListener("click", () => {
    order = { column: i, down: order.column === i ? !order.down : i > 2 };
    fillTasks();
  });
  at("head").append(cell);
});
at("filter").addEventListener("input", fillTasks);
fillTasks();

// Prompts: filtered by their text, shown in colours
function pre(parts) {
  const box = make("pre");
  for (const [kind, text, learned] of parts) box.append(make("span", text, learned ? kind + " learned" : kind));
  return box;
}
const nameOf = (prompt) => prompt.name ?? data.tasks[prompt.task][0];
function listPrompts(prompts) {
  browse(at("list"), at("prompt"), at("matches"), prompts, (prompt) => {
    const line = make("li", nameOf(prompt));
    line.append(make("br"), make("span", prompt.id, "dim"));
    return line;
  }, (prompt) => [facts([["task", nameOf(prompt)], ["example", prompt.id], ...prompt.facts]), pre(prompt.parts)]);
}
at("search").addEventListener("input", () => {
  const words = wordsOf(at("search"));
  listPrompts(data.prompts.filter((prompt) => {
    const text = (nameOf(prompt) + " " + prompt.id + " " + prompt.facts.flat().join(" ") + " " + prompt.parts.map((part) => part[1]).join("")).toLowerCase();
    return words.every((word) => text.includes(word));
  }));
});
listPrompts(data.prompts);

// Packed rows: documents and the position of their labels
for (const [number, row] of data.rows.entries()) {
  const line = make("div", undefined, "row");
  const cells = make("div", undefined, "cells");
  for (const example of row) {
    const cell = make("b");
    cell.style.width = (100 * example.length) / data.row_length + "%";
    const label = make("i");
    label.style.width = (100 * example.label) / example.length + "%";
    cell.append(label);
    cell.title = `${example.name}\n${example.id}\n${count(example.length)} positions, ${count(example.label)} of them labels`;
    cell.addEventListener("click", () => {
      for (const other of document.querySelectorAll(".cells b.on")) other.classList.remove("on");
      cell.classList.add("on");
      const labels = `${count(example.length)}, ${count(example.label)} of them labels`;
      at("document").replaceChildren(facts([["task", example.name], ["example", example.id], ["positions", labels]]), pre(example.parts));
    });
    cells.append(cell);
  }
  const fill = row.reduce((sum, example) => sum + example.length, 0) / data.row_length;
  line.append(make("span", percent(fill), "dim"), cells);
  line.title = `row ${number}`;
  at("packed").append(line);
}

// Lengths
const highest = Math.max(...data.lengths.flatMap(([, all, drawn]) => [all, drawn]));
for (const [from, all, drawn] of data.lengths) {
  const column = make("div");
  for (const [share, tone] of [[all, "pale"], [drawn, ""]]) {
    const bar = make("i", undefined, tone);
    bar.style.height = (100 * share) / highest + "%";
    column.append(bar);
  }
  column.append(make("span", count(from)));
  column.title = `from ${count(from)} tokens: ${percent(all)} of the examples, ${percent(drawn)} of the draws`;
  at("histogram").append(column);
}

for (const { eps, tasks, share, paper } of data.caps) {
  const line = make("tr");
  for (const cell of [count(eps), count(tasks), percent(share), paper === null ? "" : percent(paper)]) line.append(make("td", cell, "n"));
  at("caps").append(line);
}
