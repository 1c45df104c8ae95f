// The page: steps to turn, matrices to point at, numbers to change.

const example = JSON.parse(byId("data").textContent);
const copyOf = (matrix) => matrix.map((row) => [...row]);
/** What the reader can change: the matrices, a translation, another last word, and how attention is computed. */
const original = () => ({
  ...Object.fromEntries(["x", "wq", "wk", "wv"].map((kind) => [kind, copyOf(example[kind])])),
  t: [...example.translation],
  other: example.x.at(-1).map((value, k) => [-3, 2, 1, -1][k % 4] - value),
  scale: "one",
  causal: true,
});

/** Larger numbers would make sums that nobody can follow. */
const LARGEST = 1000;

const state = original();
/** All matrices by name, computed anew after each change. */
let all;
/** What is written again after each change. */
const writers = [];

function refresh() {
  const result = compute(state);
  all = { ...state, ...result, masked: withMask(result.scores, state.causal) };
  for (const write of writers) write();
  byId("reset").disabled = JSON.stringify(state) === JSON.stringify(original());
}

function change(what) {
  Object.assign(state, what);
  refresh();
}

// ---- matrices

const KINDS = {
  x: { name: "X", row: "x", box: true },
  wq: { name: "W<sup>Q</sup>", box: true },
  wk: { name: "W<sup>K</sup>", box: true },
  wv: { name: "W<sup>V</sup>", box: true },
  q: { name: "Q", row: "q" },
  k: { name: "K", row: "k" },
  v: { name: "V", row: "v" },
  scores: { name: "Scores", row: "q", column: "k" },
  masked: { name: "Masked scores", row: "q", column: "k" },
  weights: { name: "Weights <i>α</i>", row: "a", column: "v" },
  output: { name: "A", row: "a" },
};

const textOf = (html) => element("span", { innerHTML: html }).textContent;

/** A table of `cell(i, j)` nodes with its labels. `row` and `column` give the HTML of a label; both are optional. */
function labelledTable({ name, rows, columns, row, column, cell, className = "matrix" }) {
  const heading = (scope, html) => element("th", { scope, innerHTML: html });
  const head = Array.from({ length: columns }, (_, j) => heading("col", column?.(j) ?? `${j + 1}`));
  const line = (_, i) => {
    const cells = Array.from({ length: columns }, (_, j) => element("td", {}, cell(i, j)));
    return element("tr", {}, heading("row", row?.(i) ?? `${i + 1}`), ...cells);
  };
  return element(
    "table",
    { className },
    element("caption", { innerHTML: name }),
    element("thead", {}, element("tr", {}, element("td"), ...head)),
    element("tbody", {}, ...Array.from({ length: rows }, line)),
  );
}

/** A box for a number; `take` gets each new one. An unfinished or too large number is marked, and undone on leaving. */
function numberBox(label, value, take) {
  const box = element("input", { type: "number", step: "0.1", "aria-label": label, value: String(value()) });
  const show = () => {
    box.value = String(value());
    box.removeAttribute("aria-invalid");
  };
  box.addEventListener("input", () => {
    const isGood = box.value.trim() !== "" && Math.abs(box.valueAsNumber) <= LARGEST;
    box.toggleAttribute("aria-invalid", !isGood);
    if (isGood) take(box.valueAsNumber);
  });
  box.addEventListener("change", show);
  box.addEventListener("focus", () => box.select());
  writers.push(() => document.activeElement === box || show());
  return box;
}

/** A matrix by its kind: boxes, buttons that call `choose(i, j)`, or numbers. */
function matrix(kind, { choose, words }) {
  const { name, row, column: above, box } = KINDS[kind];
  const [rows, columns] = [all[kind].length, all[kind][0].length];
  const cell = (i, j) => {
    if (choose) return element("button", { type: "button", onclick: () => choose(i, j) });
    if (!box) return element("span");
    const take = (value) => change({ [kind]: all[kind].map((row, r) => row.map((old, c) => (r === i && c === j ? value : old))) });
    return numberBox(`${textOf(name)}, row ${i + 1}, column ${j + 1}`, () => state[kind][i][j], take);
  };
  const rowLabel = row && ((i) => (words ? `${words[i]} ` : "") + letter(row, i));
  const node = labelledTable({ name, rows, columns, row: rowLabel, column: above && ((j) => letter(above, j)), cell });
  const cells = [...node.tBodies[0].rows].map((row) => [...row.cells].slice(1));
  const write = () => {
    const format = formatter(all[kind]);
    cells.forEach((line, i) => line.forEach((td, j) => {
      const value = all[kind][i][j];
      if (box) td.classList.toggle("changed", value !== example[kind][i][j]);
      else td.firstChild.textContent = format(value);
      td.classList.toggle("hidden-score", kind === "masked" && value === -Infinity);
      if (kind !== "weights") return;
      [td.style.backgroundColor, td.style.color] = colours(value);
    }));
  };
  writers.push(write);
  document.addEventListener("themechange", write);
  return { node, cells };
}

/** A matrix and the operator before it, which stay together where lines break. */
const withOperator = (operator, node) =>
  element("div", { className: "operand" }, operator ? element("span", { className: "operator" }, operator) : null, node);

// ---- equations: matrices of which the last is the result; its chosen number shows what it is made of

function buildEquation(place) {
  const parts = place.dataset.matrices.split(" ");
  const isResult = place.dataset.chosen !== undefined;
  let chosen = isResult ? place.dataset.chosen.split(" ").map(Number) : null;
  const why = element("div", { className: "why", "aria-live": "polite" });
  const matrices = {};
  const words = place.dataset.words?.split(" ");
  const choose = (i, j) => {
    chosen = [i, j];
    explain();
  };

  const explain = () => {
    const { marks, words, sum } = explanations[parts.at(-1)](all, ...chosen);
    for (const { cells } of Object.values(matrices)) {
      for (const td of cells.flat()) td.classList.remove("first", "second", "chosen");
    }
    for (const [kind, what, at, which] of marks) {
      const { cells } = matrices[kind];
      const marked = { row: () => cells[at], column: () => column(cells, at), cell: () => [cells[at[0]][at[1]]] }[what]();
      for (const td of marked) td.classList.add(which);
    }
    const { cells } = matrices[parts.at(-1)];
    for (const td of cells.flat()) td.firstChild.tabIndex = -1;
    const td = cells[chosen[0]][chosen[1]];
    td.classList.add("chosen");
    td.firstChild.tabIndex = 0;
    why.innerHTML = `<p class="muted small">${words}</p><p>${sum}</p>`;
  };

  for (const [at, part] of parts.entries()) {
    if (!(part in KINDS)) continue;
    matrices[part] = matrix(part, { choose: isResult && at === parts.length - 1 ? choose : null, words });
    const operator = parts[at - 1] in KINDS ? null : parts[at - 1];
    place.append(withOperator(operator, matrices[part].node));
  }
  if (!isResult) return;
  writers.push(explain);
  watchCells(matrices[parts.at(-1)].cells, choose);
  place.after(why);
  if (place.dataset.printed) place.parentNode.append(printedBeside(place.dataset.printed));
}

/** Pointing at, focusing, and moving by arrow keys between the buttons of a result. */
function watchCells(cells, choose) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  cells.forEach((line, i) => line.forEach((td, j) => {
    td.addEventListener("pointerenter", () => choose(i, j));
    td.addEventListener("focusin", () => choose(i, j));
    td.addEventListener("keydown", (event) => {
      const move = event.altKey || event.ctrlKey || event.metaKey ? undefined : moves[event.key];
      if (!move) return;
      event.preventDefault();
      cells[i + move[0]]?.[j + move[1]]?.firstChild.focus();
    });
  }));
}

// ---- the numbers that the chapter prints

/** What each result depends on: where that has changed, the chapter has nothing to compare with. */
const MADE_OF = {
  q: ["x", "wq"],
  k: ["x", "wk"],
  v: ["x", "wv"],
  scores: ["x", "wq", "wk", "scale"],
  weights: ["x", "wq", "wk", "scale", "causal"],
  output: ["x", "wq", "wk", "wv", "scale", "causal"],
};

/** What the chapter prints of a result, beside ours; struck through where it does not follow. */
function printedBeside(kind) {
  const rows = example.printed[kind];
  const ours = compute(original())[kind];
  const follows = (i, j) => Math.abs(ours[i][j] - rows[i][j]) < 0.005 + 1e-9;
  const cell = (i, j) => {
    if (rows[i].length <= j) return element("span", {}, "");
    const text = rows[i][j].toFixed(2);
    return follows(i, j) ? element("span", {}, text) : element("s", { title: "does not follow" }, text);
  };
  const labels = [KINDS[kind].row, KINDS[kind].column].map((label) => label && ((i) => letter(label, i)));
  const [row, above] = labels;
  const columns = Math.max(...rows.map((row) => row.length));
  const table = (name, cell) =>
    labelledTable({ name, rows: rows.length, columns, row, column: above, cell, className: "matrix small" });
  const places = rows.flatMap((row, i) => row.map((_, j) => [i, j]));
  const wrong = places.filter(([i, j]) => !follows(i, j)).length;
  const tables = element("div", { className: "equation" }, table("As printed", cell));
  if (kind === "scores") {
    const from = (i, j) => dot(example.printed.q[i], example.printed.k[j]).toFixed(2);
    tables.append(table("From its own <i>q</i> and <i>k</i>", (i, j) => element("span", {}, j <= i ? from(i, j) : "")));
  }
  const numbers = `of the ${places.length} numbers that the chapter prints here`;
  const which = wrong === places.length ? `None ${numbers} follows` : `${wrong} ${numbers} do not follow`;
  const node = element(
    "details",
    { className: "printed", open: true },
    element("summary", {}, "What the chapter prints"),
    element("p", { className: "small" }, `${which} from its own matrices (struck through). Trust those above.`),
    tables,
  );
  const isOriginal = (key) => JSON.stringify(state[key]) === JSON.stringify(original()[key]);
  writers.push(() => { node.hidden = !MADE_OF[kind].every(isOriginal); });
  return node;
}

// ---- switches

const SWITCHES = {
  scale: { label: "Scaling", options: [["one", "none"], ["inverse_sqrt", "1/√<i>d<sub>k</sub></i>"]] },
  causal: { label: "Mask", options: [[true, "on"], [false, "off"]] },
};

/** Buttons that exclude each other; `now` says which is chosen. */
function switchOf(label, options, now, take) {
  const buttons = options.map(([value, html]) => {
    const button = element("button", { type: "button", innerHTML: html, onclick: () => take(value) });
    writers.push(() => button.setAttribute("aria-pressed", String(now() === value)));
    return button;
  });
  const group = element("span", { className: "switch", role: "group", "aria-label": label }, ...buttons);
  return element("span", { className: "control" }, element("span", { "aria-hidden": "true" }, label), group);
}

function buildControls(place) {
  for (const name of place.dataset.controls.split(" ")) {
    const { label, options } = SWITCHES[name];
    place.append(switchOf(label, options, () => state[name], (value) => change({ [name]: value })));
  }
  place.classList.add("controls", "no-print");
}
