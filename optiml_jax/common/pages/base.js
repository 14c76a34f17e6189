"use strict";
// Data enter the page only as text (textContent), never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const count = (x) => x.toLocaleString("en-US");
const percent = (x) => (100 * x).toFixed(x < 0.001 && x > 0 ? 3 : 1) + "%";
const wordsOf = (input) => input.value.toLowerCase().split(/\s+/).filter(Boolean);

function facts(pairs) {
  const box = make("dl", undefined, "facts");
  for (const [name, value] of pairs) box.append(make("dt", name), make("dd", value));
  return box;
}

// Shows `items` as a list on the left (at most `limit` lines) and the details of the selected item on the right.
function browse(list, detail, matches, items, line, show, limit = 200) {
  const lines = items.slice(0, limit).map((item) => {
    const node = line(item);
    node.addEventListener("click", () => select(item, node));
    return node;
  });
  function select(item, selected) {
    for (const other of lines) other.classList.toggle("on", other === selected);
    detail.replaceChildren(...show(item));
  }
  list.replaceChildren(...lines);
  matches.textContent = `${count(items.length)} prompts` + (items.length > limit ? `, the first ${limit} listed` : "");
  if (items.length) select(items[0], lines[0]); else detail.replaceChildren();
}

// Tables: a click on a column heading sorts, the words in the input filter. Cells without a number sort last.
const numberOf = (text) => { const number = parseFloat(text.replace(/,/g, "")); return Number.isNaN(number) ? -Infinity : number; };
function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    if (head.classList.contains("barcell")) return;
    head.addEventListener("click", () => {
      const numbers = head.classList.contains("n");
      const down = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") !== "descending" : numbers;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => (numbers ? numberOf(row.cells[i].textContent) : row.cells[i].textContent.toLowerCase());
      const sign = down ? -1 : 1;
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => sign * (a < b ? -1 : a > b ? 1 : 0));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 10) return;
  const input = make("input");
  input.type = "search";
  input.placeholder = "Filter by words";
  const shown = make("span", "", "dim");
  input.addEventListener("input", () => {
    const words = wordsOf(input);
    let matching = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      matching += !row.hidden;
    }
    shown.textContent = ` ${count(matching)} of ${count(rows.length)}`;
  });
  const line = make("p");
  line.append(input, shown);
  table.parentNode.before(line);
}

for (const table of document.querySelectorAll("table.sorted")) { sortable(table); filterable(table); }

// Shows a list of answers, filtered by task, by outcome (pairs [name, predicate]) and by the words of `textOf(answer)`.
function browseAnswers(all, outcomes, textOf, line, show) {
  const fill = (select, names) => select.replaceChildren(...names.map((name, i) => { const option = make("option", name); option.value = i; return option; }));
  function list() {
    const words = wordsOf(at("search"));
    const task = at("of-task").value - 1;
    const [, matchesOutcome] = outcomes[at("outcome").value];
    const answers = all.filter((answer) => {
      if ((task >= 0 && answer.task !== task) || !matchesOutcome(answer)) return false;
      const text = words.length ? textOf(answer).toLowerCase() : "";
      return words.every((word) => text.includes(word));
    });
    browse(at("list"), at("answer"), at("matches"), answers, line, show);
  }
  fill(at("of-task"), ["all tasks", ...data.tasks]);
  fill(at("outcome"), outcomes.map(([name]) => name));
  for (const [id, kind] of [["search", "input"], ["of-task", "change"], ["outcome", "change"]]) at(id).addEventListener(kind, list);
  for (const row of document.querySelectorAll("#tasks tbody tr")) {
    const name = data.tasks.find((task) => `.${row.cells[0].textContent}`.endsWith(`.${task}`));
    row.cells[0].addEventListener("click", () => {
      at("of-task").value = data.tasks.indexOf(name) + 1;
      list();
      location.hash = "answers";
    });
  }
  list();
}
