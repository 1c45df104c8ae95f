// What the model expects next at the chosen place, read off after each layer (the logit lens): the most likely tokens at
// each depth, and the probability of the token that really follows. Depth 0 is the embedding: before layer 1.

const lensView = { rows: [], labels: null, visible: false, due: null };
const LENS = "The most likely next tokens (words or pieces of words), if the model had to answer after each layer.";
const depthName = (depth) => (depth === 0 ? "before layer 1" : `after layer ${depth}${depth === layers ? ": answer" : ""}`);

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
  const followsIndex = data.vocabulary_indices[token + 1];
  byId("lens-title").textContent = `What comes after “${beginning(token)}”?`;
  lensView.rows.forEach((bars, depth) => {
    const start = (depth * context + token) * each;
    bars.forEach((bar, i) => {
      const id = frame.candidates[start + i];
      const probability = frame.probabilities[start + i] / FULL;
      const right = id === followsIndex;
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
      ? `${LENS} Nothing follows here in the text.`
      : `${LENS} Really follows: ${nameOf(byTokens, token + 1)}. Its probability goes from ${shown(chances[0])} to ${shown(chances[layers])}.`;
  paintLensLine(follows === null ? null : chances, follows);
}

/** The end of the prompt up to a token, as many whole words as a title holds. */
function beginning(token) {
  const MOST = 28; // characters
  const spaced = (text) => inSymbols(text).replaceAll("␣", " ");
  let word = data.words[token];
  const whole = byWords.last[word] === token;
  const end = whole ? data.word_texts[word] : data.tokens.slice(byWords.first[word], token + 1).join("");
  // A blank at the end is what is chosen, if the token is nothing else.
  let text = data.tokens[token].trim() ? spaced(end.trimEnd()) : spaced(end.trimEnd()) + inSymbols(data.tokens[token]);
  while (word > 0 && text.length + data.word_texts[word - 1].length <= MOST) text = spaced(data.word_texts[--word]) + text;
  const letters = Array.from(text.trimStart());
  if (letters.length > MOST) return `…${letters.slice(1 - MOST).join("")}`;
  return word > 0 ? `… ${letters.join("")}` : letters.join("");
}

function paintLensLine(chances, follows) {
  const plot = byId("lens-line");
  plot.toggleAttribute("hidden", chances === null || layers === 0);
  if (chances === null) return;
  const [width, height, left, right, top, bottom] = [420, 132, 34, 12, 10, 44];
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
  const depths = chances.flatMap((_, depth) => (depth % stride ? [] : [text(String(depth), x(depth), height - 24, "middle")]));
  const axis = text(`layers passed; probability of “${label(follows, 10)}”`, (left + width - right) / 2, height - 5, "middle");
  const points = chances.map((chance, depth) => `${x(depth)},${y(chance)}`);
  const dots = chances.map((chance, depth) => svgElement("circle", { cx: x(depth), cy: y(chance), r: 3.5, class: "dot" }));
  plot.replaceChildren(...grid, ...depths, axis, svgElement("polyline", { points: points.join(" "), class: "curve" }), ...dots);
}
