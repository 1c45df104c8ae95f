// What the model expects next at the chosen place, read off after each layer (the logit lens): the most likely tokens at
// each depth, and the probability of the token that really follows. Depth 0 is the embedding.

const lensView = { rows: [], labels: null, visible: false, due: null };
const depthName = (depth) => (depth === 0 ? "embedding" : `layer ${depth}${depth === layers ? ": answer" : ""}`);

/** Builds a bar list for each depth. */
function buildLens() {
  const each = data.candidates_each;
  lensView.rows = Array.from({ length: layers + 1 }, (_, depth) => {
    const bars = Array.from({ length: each }, () => {
      const [name, fill, value] = [element("span", { className: "name" }), element("span", {}), element("span", { className: "value" })];
      return { item: element("li", {}, name, element("span", { className: "bar" }, fill), value), name, fill, value };
    });
    const list = element("ol", { className: "bars" }, ...bars.map(({ item }) => item));
    byId("lens").append(element("div", {}, element("h3", {}, depthName(depth)), list));
    return bars;
  });
  lensView.labels = data.vocabulary_texts.map((text) => label(text, 12));
  new IntersectionObserver(([{ isIntersecting }]) => {
    lensView.visible = isIntersecting;
    if (isIntersecting && lensView.due) paintLens(...lensView.due);
  }).observe(byId("lens").parentElement);
}

/** The lens at the last token of a unit; while it is out of view only if `hidden` says so. */
function paintLens(frame, units, item, hidden = false) {
  lensView.due = lensView.visible || hidden ? null : [frame, units, item];
  if (lensView.due) return;
  const each = data.candidates_each;
  const token = units.last[item];
  const follows = token + 1 < context ? data.tokens[token + 1] : null;
  byId("lens-title").textContent = `What comes after “${beginning(token)}”?`;
  lensView.rows.forEach((bars, depth) => {
    const start = (depth * context + token) * each;
    bars.forEach((bar, i) => {
      const id = frame.candidates[start + i];
      const probability = frame.probabilities[start + i] / FULL;
      const right = data.vocabulary_texts[id] === follows;
      bar.name.textContent = lensView.labels[id];
      bar.fill.style.width = `${100 * probability}%`;
      bar.fill.className = right ? "orange" : "blue";
      bar.item.classList.toggle("right", right);
      bar.value.textContent = shown(probability);
    });
  });
  const chances = Array.from({ length: layers + 1 }, (_, depth) => frame.next[depth * context + token] / FULL);
  byId("lens-note").textContent =
    follows === null
      ? "The most likely next tokens, if the model had to answer after each layer. Nothing follows here in the text."
      : `The most likely next tokens, if the model had to answer after each layer. Really follows: “${label(follows)}”. ` +
        `Its probability goes from ${shown(chances[0])} to ${shown(chances[layers])}.`;
  paintLensLine(follows === null ? null : chances, follows);
}

/** The end of the prompt up to a token, short enough for a title. */
function beginning(token) {
  const text = data.tokens.slice(Math.max(0, token - 40), token + 1).map((text) => text.replace(/\s+/g, " ")).join("");
  const letters = Array.from(text);
  const end = label(data.tokens[token]);
  if (data.tokens[token].trim() === "") letters.splice(-1, 1, end);
  return letters.length > 28 ? `…${letters.slice(-27).join("")}` : letters.join("");
}

function paintLensLine(chances, follows) {
  const plot = byId("lens-line");
  plot.toggleAttribute("hidden", chances === null || layers === 0);
  if (chances === null) return;
  const [width, height, left, right, top, bottom] = [420, 124, 34, 12, 10, 36];
  const x = (depth) => left + (depth / Math.max(1, layers)) * (width - left - right);
  const y = (chance) => height - bottom - chance * (height - top - bottom);
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plot.setAttribute("aria-label", `Probability of ${label(follows)} at each depth: ${chances.map(shown).join(", ")}`);
  const text = (words, at, down, anchor) => svgElement("text", { x: at, y: down, "text-anchor": anchor, class: "axis" }, words);
  const grid = [0, 0.5, 1].flatMap((chance) => [
    svgElement("line", { x1: left, x2: width - right, y1: y(chance), y2: y(chance), class: "grid" }),
    text(String(chance), left - 6, y(chance) + 4, "end"),
  ]);
  const stride = Math.ceil((layers + 1) / 12);
  const depths = chances.flatMap((_, depth) => (depth % stride ? [] : [text(String(depth), x(depth), height - 21, "middle")]));
  const axis = text(`layers passed; probability of “${label(follows, 12)}”`, (left + width - right) / 2, height - 5, "middle");
  const points = chances.map((chance, depth) => `${x(depth)},${y(chance)}`);
  const dots = chances.map((chance, depth) => svgElement("circle", { cx: x(depth), cy: y(chance), r: 3.5, class: "dot" }));
  plot.replaceChildren(...grid, ...depths, axis, svgElement("polyline", { points: points.join(" "), class: "curve" }), ...dots);
}
