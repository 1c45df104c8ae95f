// The prompt as a reader sees it: one unit is chosen, those before it are blue by how much it looks at them, those
// after it orange by how much they look back at it. Below it, the largest weights as lists, and all as a table.

const LONG_TEXT = 300; // units from which on the text scrolls in a box of its own
const LISTED = 6;

const textView = { nodes: [], painted: [], numbers: false };

/** Builds the text for a unit; `onpoint(item)` on hover (null on leaving), `onchoose(item)` on a click or tap. */
function buildText(units, onpoint, onchoose) {
  const box = byId("text");
  const visible = units.texts.reduce((sum, text) => sum + text.trim().length, 0);
  textView.numbers = units.size <= 60 && visible / units.size >= 2.5;
  box.classList.toggle("numbered", textView.numbers);
  box.classList.toggle("long", units.size > LONG_TEXT);
  document.querySelector(".lists").style.setProperty("--listed", Math.min(LISTED + 1, units.size));
  textView.painted = [];
  textView.nodes = units.texts.map((text, item) => {
    const node = element("span", { className: "unit-text", role: "option", id: `unit-${item}` });
    node.dataset.item = item;
    const blank = text.trim() === "";
    // The blanks at the ends of a text stand beside it.
    const ink = element("span", { className: blank ? "ink blank" : "ink" }, blank ? label(text) : inSymbols(text.trim()));
    node.append(ink);
    if (textView.numbers) node.append(element("span", { className: "number" }));
    return node;
  });
  // Characters of a word stay on one line, line breaks of the prompt are kept.
  const pieces = [];
  let word = null;
  textView.nodes.forEach((node, item) => {
    const token = units.first[item];
    if (item === 0 || data.words[token] !== data.words[units.first[item - 1]]) pieces.push((word = element("span", { className: "word" })));
    word.append(node);
    const between = /\s*$/.exec(units.texts[item])[0] + /^\s*/.exec(units.texts[item + 1] ?? "")[0];
    const breaks = [...between].filter((c) => c === "\n").length;
    for (let i = 0; i < breaks; i++) pieces.push(element("br"), (word = element("span", { className: "word" })));
    if (between && !breaks) pieces.push(" ");
  });
  box.replaceChildren(...pieces);
  const itemOf = (event) => {
    const node = event.target.closest?.(".unit-text");
    return node ? Number(node.dataset.item) : null;
  };
  box.onpointermove = (event) => event.pointerType === "mouse" && itemOf(event) !== null && onpoint(itemOf(event), event);
  box.onpointerleave = () => onpoint(null);
  box.onclick = (event) => itemOf(event) !== null && onchoose(itemOf(event));
}

/** Paints the weights of and on `chosen`. Only what changed since the last call is touched. */
function paintText(weights, units, chosen, selected) {
  const theme = isDark() ? "dark" : "light";
  textView.nodes.forEach((node, item) => {
    const weight = item <= chosen ? weightAt(weights, chosen, item) : weightAt(weights, item, chosen);
    const hue = item <= chosen ? "blue" : "orange";
    const key = `${theme} ${hue} ${rootIndex(weight)} ${Math.round(weight * 100)} ${item === chosen} ${item === selected}`;
    if (textView.painted[item] === key) return;
    textView.painted[item] = key;
    const [background, ink] = colours(weight, hue, theme);
    node.style.backgroundColor = background;
    node.style.color = ink;
    node.classList.toggle("chosen", item === chosen);
    node.setAttribute("aria-selected", String(item === selected));
    node.tabIndex = item === selected ? 0 : -1;
    if (textView.numbers) node.lastChild.textContent = weight >= 0.005 ? weight.toFixed(2).replace(/^0/, "") : "";
  });
}

/** Brings a unit of a long text into view, without moving the page. */
function showInText(item) {
  const box = byId("text");
  const node = textView.nodes[item];
  if (!box.classList.contains("long") || !node) return;
  const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
  if (inner.top < outer.top + 20) box.scrollTop -= outer.top + 40 - inner.top;
  if (inner.bottom > outer.bottom - 20) box.scrollTop += inner.bottom - outer.bottom + 40;
}

/** A unit's name in a sentence: “gato”, or for a part of a word “a” in “gato”. */
function nameOf(units, item) {
  const [name, word] = [`“${units.labels[item]}”`, wordOf(units, item)];
  return word === null ? name : `${name} in “${word}”`;
}

/** The label of the word that an item is a part of; null for what is no part. */
function wordOf(units, item) {
  const word = data.words[item];
  const isPart = units === byTokens && hasWords && byWords.first[word] < byWords.last[word];
  return isPart ? byWords.labels[word] : null;
}

/** What `chosen` looks at, or what looks at it: [item, weight], largest weight first. */
function weightsOf(weights, units, chosen, back) {
  const items = Array.from({ length: back ? chosen + 1 : units.size - chosen }, (_, i) => (back ? i : chosen + i));
  return items
    .map((item) => [item, back ? weightAt(weights, chosen, item) : weightAt(weights, item, chosen)])
    .sort((a, b) => b[1] - a[1]);
}

function paintLists(weights, units, chosen) {
  for (const back of [true, false]) {
    const hue = back ? "blue" : "orange";
    byId(back ? "back-title" : "forth-title").textContent = `${nameOf(units, chosen)} ${back ? "looks at" : "is looked at by"}`;
    const all = weightsOf(weights, units, chosen, back);
    const rest = all.slice(LISTED);
    byId(back ? "back" : "forth").replaceChildren(
      ...all.slice(0, LISTED).map(([item, weight]) =>
        element(
          "li",
          {},
          element("span", { className: "name", translate: false }, units.labels[item], note(units, item, chosen)),
          element("span", { className: "bar" }, element("span", { className: hue, style: `width: ${weight * 100}%` })),
          element("span", { className: "value" }, shown(weight)),
        ),
      ),
      ...(rest.length ? [more(rest)] : []),
    );
  }
  if (byId("all-weights").open) paintAllWeights(weights, units, chosen);
}

/** The row for what a list leaves out. */
function more(rest) {
  const sum = rest.reduce((sum, [, weight]) => sum + weight, 0);
  return element("li", { className: "more muted" }, element("span", {}, `and ${rest.length} more, together`), element("span", { className: "sum" }, shown(sum)));
}

/** Which of several equal units an entry is, and the word of a part. */
function note(units, item, chosen) {
  const word = wordOf(units, item);
  const alone = units.labels.indexOf(units.labels[item]) === units.labels.lastIndexOf(units.labels[item]);
  const remarks = [
    item === chosen ? "itself" : alone ? null : `no. ${item + 1}`,
    word === null ? null : `in ${word}`,
  ];
  return element("small", {}, ` ${remarks.filter(Boolean).join(", ")}`);
}

/** The text alternative of the whole row and column, in the order of the prompt. */
function paintAllWeights(weights, units, chosen) {
  const head = ["no.", units.one, `${units.labels[chosen]} looks at it`, `it looks at ${units.labels[chosen]}`];
  const rows = units.labels.map((text, item) =>
    element(
      "tr",
      {},
      element("td", {}, String(item + 1)),
      element("th", { scope: "row" }, text),
      element("td", {}, item <= chosen ? shown(weightAt(weights, chosen, item)) : "–"),
      element("td", {}, item >= chosen ? shown(weightAt(weights, item, chosen)) : "–"),
    ),
  );
  const header = element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)));
  const table = element("table", { className: "numbers" }, element("thead", {}, header), element("tbody", {}, ...rows));
  byId("all-weights").lastElementChild.replaceChildren(table);
}

/** The choice in words, for those who hear the page. */
function inWords(weights, units, chosen) {
  const list = (back) =>
    weightsOf(weights, units, chosen, back)
      .slice(0, 3)
      .filter(([, weight]) => weight >= 0.005)
      .map(([item, weight]) => `${item === chosen ? "itself" : nameOf(units, item)} ${weight.toFixed(2)}`)
      .join(", ") || "none";
  return `${nameOf(units, chosen)}, ${units.one} ${chosen + 1} of ${units.size}. Looks at ${list(true)}. Looked at by ${list(false)}.`;
}

/** The colour scales with numbers, under the text. */
function paintLegend() {
  const scale = (hue, name) => {
    const steps = Array.from({ length: 41 }, (_, i) => colours((i / 40) ** 2, hue)[0]);
    const ticks = [0, 0.02, 0.1, 0.25, 0.5, 1].map((weight) =>
      element("span", { style: `left: ${Math.sqrt(weight) * 100}%` }, String(weight)),
    );
    return element(
      "span",
      { className: "scale" },
      element("span", {}, name),
      element("span", { className: "ramp", style: `background: linear-gradient(to right, ${steps.join(", ")})` }),
      element("span", { className: "ticks" }, ...ticks),
    );
  };
  byId("legend").replaceChildren(
    scale("blue", "what it looks at"),
    scale("orange", "what looks back at it"),
    element("span", {}, `Small weights are drawn stronger than they are (square-root scale)${textView.numbers ? "; those below 0.005 have no number" : ""}.`),
  );
}
