// Tables: a click on a column sorts, words filter. What is no number sorts last.
const numberOf = (text) => { const found = parseFloat(text.replace(/,/g, "")); return Number.isNaN(found) ? -Infinity : found; };
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
  input.placeholder = "Filter by any words of a line";
  const shown = make("span", "", "dim");
  input.addEventListener("input", () => {
    const words = wordsOf(input);
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    shown.textContent = ` ${count(left)} of ${count(rows.length)}`;
  });
  const line = make("p");
  line.append(input, shown);
  table.parentNode.before(line);
}
for (const table of document.querySelectorAll("table.sorted")) { sortable(table); filterable(table); }

// Answers
const OUTCOMES = [["every answer", () => true], ["wrong", (one) => one.score !== null && one.score < 1], ["right", (one) => one.score === 1],
  ["not scored", (one) => one.score === null], ...data.flags.map((flag) => [flag, (one) => one.flags.includes(flag)])];
function fillSelect(select, names) { select.replaceChildren(...names.map((name, i) => { const made = make("option", name); made.value = i; return made; })); }
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
function listAnswers() {
  const words = wordsOf(at("search"));
  const task = at("of-task").value - 1;
  const [, fits] = OUTCOMES[at("outcome").value];
  const found = data.samples.filter((one) => (task < 0 || one.task === task) && fits(one)
    && words.every((word) => `${one.id} ${one.prompt} ${one.answer} ${one.references.join(" ")}`.toLowerCase().includes(word)));
  browse(at("list"), at("answer"), at("matches"), found, line, show);
}
if (at("search")) {
  fillSelect(at("of-task"), ["all tasks", ...data.tasks]);
  fillSelect(at("outcome"), OUTCOMES.map(([name]) => name));
  for (const [id, kind] of [["search", "input"], ["of-task", "change"], ["outcome", "change"]]) at(id).addEventListener(kind, listAnswers);
  for (const row of document.querySelectorAll("#tasks tbody tr")) {
    row.cells[0].addEventListener("click", () => {
      at("of-task").value = data.tasks.indexOf(row.cells[0].textContent) + 1;
      listAnswers();
      location.hash = "answers";
    });
  }
  listAnswers();
}
