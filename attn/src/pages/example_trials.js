// Two things to try: another last word, and a translation of all words.

const writeNumber = (td, value, i, j, format) => { td.firstChild.textContent = format(value); };

/** A table whose numbers `values()` are written again after each change. */
function shown(name, row, column, values, writeCell = writeNumber) {
  const first = values();
  const node = labelledTable({
    name, row, column, rows: first.length, columns: first[0].length, cell: () => element("span"),
  });
  const write = () => {
    const numbers = values();
    const format = formatter(numbers);
    cellsOf(node).forEach((line, i) => line.forEach((td, j) => writeCell(td, numbers[i][j], i, j, format)));
  };
  writers.push(write);
  document.addEventListener("themechange", write);
  return node;
}

/** A row of boxes for the numbers of `state[key]`. */
function rowOfBoxes(name, label, key) {
  const take = (j) => (value) => change({ [key]: state[key].with(j, value) });
  const cell = (_, j) => numberBox(`${textOf(label)}, number ${j + 1}`, () => state[key][j], take(j));
  return withBoxes(labelledTable({ name, rows: 1, columns: state[key].length, row: () => label, cell }));
}

const primed = (name) => (i) => `<i>${name}</i><sub>${i + 1}</sub>′`;

/** Theorem 1 and Corollary 1.1: which rows of the output move when the last word is another. */
function buildFuture(place) {
  const last = example.x.length - 1;
  const after = () => compute({ ...state, x: [...state.x.slice(0, last), state.other] }).output;
  const writeMoved = (td, value, i, j, format) => {
    writeNumber(td, value, i, j, format);
    td.classList.toggle("moved", moved(i));
  };
  const moved = (i) => all.output[i].some((value, j) => value !== after()[i][j]);
  const verdict = element("p", { className: "verdict", "aria-live": "polite" });
  const names = (rows) => rows.map((i) => letter("a", i)).join(" and ") || "no row";
  const rows = example.x.map((_, i) => i);
  place.append(
    element("div", { className: "equation" },
      rowOfBoxes("Another last word", primed("x")(last), "other"),
      shown("A before", (i) => letter("a", i), undefined, () => all.output),
      withOperator("→", shown("A after", primed("a"), undefined, after, writeMoved))),
    verdict,
  );
  writers.push(() => {
    const [moving, staying] = [rows.filter(moved), rows.filter((i) => !moved(i))];
    const stay = staying.length ? ` ${names(staying)}: the same to the last bit.` : "";
    verdict.innerHTML = `${state.causal ? "With the mask" : "Without the mask"}: ${names(moving)} moved.${stay}`;
  });
}

/** Lemma 1: what a translation does where it is added. */
function buildTranslation(place) {
  let [where, word] = ["all", example.x.length - 1];
  const set = (choice) => () => { choice(); refresh(); };
  const moved = () => state.x.map((row) => added(row, state.t));
  const changes = {
    all: () => ({ x: moved() }),
    keys: () => ({ keysOf: moved() }),
    values: () => ({ valuesOf: moved() }),
  };
  const after = () => compute({ ...state, ...changes[where]() });
  const difference = (kind) => after()[kind].map((row, i) => row.map((value, j) => value - all[kind][i][j]));
  const largest = (matrix) => Math.max(...matrix.flat().map(Math.abs));
  const inWords = (value) => (value < 1e-12 ? "nothing (but rounding)" : plain(value));
  const verdict = element("p", { className: "verdict", "aria-live": "polite" });
  const attends = [(i) => letter("a", i), (j) => letter("v", j)];
  const rows = example.x.map((_, i) => [i, `${i + 1}`]);
  const termsTable = element("div", { className: "scroll" });

  place.append(
    element("div", { className: "controls" },
      switchOf("Add t to", [["all", "all"], ["keys", "keys"], ["values", "values"]], () => where,
        (value) => set(() => { where = value; })())),
    element("p", { className: "small muted" }, "All: to every embedding. Keys: only to the rows that keys are made of. Values: only to those that values are made of."),
    element("div", { className: "equation" }, rowOfBoxes("The translation", "<i>t</i>", "t")),
    verdict,
    element("div", { className: "equation" },
      shown("Weights before", ...attends, () => all.weights, writeShare),
      withOperator("→", shown("Weights after", ...attends, () => after().weights, writeShare))),
    element("div", { className: "equation" },
      shown("A after − A before", (i) => letter("a", i), undefined, () => difference("output")),
      shown("For comparison", () => "<i>t</i> W<sup>V</sup>", undefined, () => product([state.t], state.wv))),
    element("h3", {}, "What cancels in the softmax, and what stays"),
    element("div", { className: "controls" },
      switchOf("Scores of word", rows, () => word, (value) => set(() => { word = value; })())),
    termsTable,
    element("p", { className: "small muted" }, "What is the same for every key multiplies all powers of e by the same number, and the division cancels it. What differs from key to key stays."),
  );

  writers.push(() => {
    const [weights, outputs] = [largest(difference("weights")), difference("output")];
    const shift = product([state.t], state.wv)[0];
    const exactly = largest(outputs.map((row) => row.map((value, j) => value - shift[j]))) < 1e-9;
    const same = weights < 1e-12;
    verdict.innerHTML =
      `Largest change of a weight: <b>${inWords(weights)}</b>. ` +
      (where === "values" && exactly ? "Every output moves by exactly <i>t</i> W<sup>V</sup>, since the shares of a row add up to 1." :
        where === "keys" && same ? "What <i>t</i> adds to a query’s scores is the same for all keys, and cancels. So nothing changes." :
          same ? "With these numbers the weights stay; change one, and see." :
            "So the lemma is <b>false</b>: the weights change, and the outputs do not all move by <i>t</i> W<sup>V</sup>.");
    termsTable.replaceChildren(termsOfScores(where, word));
  });
}

/** The parts of a translated score, for one query and all keys that it sees. */
function termsOfScores(where, i) {
  if (where === "values") return element("p", {}, "Scores are made of queries and keys: these have not changed.");
  const seen = all.k.map((_, j) => j).filter((j) => !(state.causal && j > i));
  const [tq, tk] = [product([state.t], state.wq)[0], product([state.t], state.wk)[0]];
  const factor = scaleFactor(state.scale, tk.length);
  const parts = [
    [`${letter("q", i)} · <i>k<sub>j</sub></i>`, (j) => dot(all.q[i], all.k[j]), ""],
    [`${letter("q", i)} · <i>t</i>W<sup>K</sup>`, () => dot(all.q[i], tk)],
    ["<i>t</i>W<sup>Q</sup> · <i>k<sub>j</sub></i>", (j) => dot(tq, all.k[j])],
    ["<i>t</i>W<sup>Q</sup> · <i>t</i>W<sup>K</sup>", () => dot(tq, tk)],
  ].slice(0, where === "keys" ? 2 : 4);
  const verdictOf = (values) => {
    return Math.max(...values) - Math.min(...values) < 1e-12 ? "cancels" : "<b>stays</b>";
  };
  const cell = (value) => element("td", {}, plain(value));
  const line = ([name, of, verdict]) => {
    const values = seen.map((j) => of(j) * factor);
    return element("tr", {}, element("th", { scope: "row", innerHTML: name }), ...values.map(cell),
      element("td", { innerHTML: verdict ?? verdictOf(values) }));
  };
  const sum = ["new score", (j) => parts.reduce((total, [, of]) => total + of(j), 0), ""];
  const head = seen.map((j) => element("th", { scope: "col", innerHTML: `<i>j</i> = ${j + 1}` }));
  return element("table", { className: "numbers terms" },
    element("caption", { className: "visually-hidden" }, `The parts of the scores of word ${i + 1}`),
    element("thead", {}, element("tr", {}, element("td"), ...head, element("td"))),
    element("tbody", {}, ...[...parts, sum].map(line)));
}
