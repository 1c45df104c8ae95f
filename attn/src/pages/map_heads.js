// All layers and heads as small pictures, drawn when they come into view, and the table of their scores.

const THUMB_POINTS = 96; // most points a side of a small picture
const TURN = 8; // ms of drawing before the browser gets its turn

const headsView = { thumbs: [], visible: new Set(), wanted: null, running: false, order: "" };

/** Builds the pictures and the choice of their order; `onchoose(layer, head)`. */
function buildHeads(onchoose) {
  const choices = [["", "layer and head"], ...Object.entries(SCORES).map(([key, { name }]) => [key, name])];
  byId("order").append(...choices.map(([value, name]) => element("option", { value }, name)));
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) headsView.visible.add(target.thumb);
      else headsView.visible.delete(target.thumb);
    }
    drawThumbs();
  });
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++) {
      const canvas = element("canvas", { width: 1, height: 1 });
      const name = element("span", { className: "name" });
      const value = element("span", { className: "value" });
      const bar = element("span", { className: "bar" }, element("span", { className: "blue" }));
      const button = element("button", { type: "button", className: "thumb" }, canvas, name, value, bar);
      const thumb = { layer, head, canvas, name, value, bar, button, drawn: "" };
      button.thumb = thumb;
      button.addEventListener("click", () => onchoose(layer, head));
      headsView.thumbs.push(thumb);
      watcher.observe(button);
    }
  }
  byId("heads").classList.toggle("many", layers * heads > 24);
  byId("heads").style.setProperty("--heads", heads);
  byId("heads").addEventListener("keydown", (event) => moveInHeads(event, onchoose));
}

/** Names, scores and order of the pictures for a frame. */
function paintHeads(frame, order) {
  headsView.order = order;
  for (const thumb of headsView.thumbs) {
    const scores = frame.scores[thumb.layer][thumb.head];
    const job = nature(scores);
    const place = order || layers === 1 ? `layer ${thumb.layer + 1}, head ${thumb.head + 1}` : `head ${thumb.head + 1}`;
    thumb.name.replaceChildren(element("b", {}, place), job && ` ${job}`);
    thumb.score = order ? (scores[order] ?? -1) : 0;
    thumb.value.textContent = order ? inUnits(order, scores[order]) : "";
    thumb.bar.hidden = !order;
    const score = order ? `, ${SCORES[order].name} ${thumb.value.textContent}` : "";
    thumb.button.setAttribute("aria-label", `layer ${thumb.layer + 1}, head ${thumb.head + 1}${job && `: ${job}`}${score}`);
  }
  const most = Math.max(...headsView.thumbs.map((thumb) => thumb.score), 1e-9);
  for (const { bar, score } of headsView.thumbs) bar.firstChild.style.width = `${Math.max(0, (100 * score) / most)}%`;
  const named = frame.scores.flat().some(nature);
  byId("order-note").textContent = order ? `${SCORES[order].name}: ${SCORES[order].note}.${inTokens}` : `Each picture is one of the model's ways of looking back. Choose one.${named ? inTokens : ""}`;
  arrange(order);
}

const inUnits = (score, value) =>
  value === null ? "–" : score === "entropy" ? `${value.toFixed(2)} bits` : value.toFixed(2);

/** Why a page in words counts tokens. */
const inTokens = hasWords ? " Names and scores are about tokens, the pieces of words that the model reads." : "";

/** Puts the pictures in order, unless they are: by layer with a heading each, or by score. */
function arrange(order) {
  const box = byId("heads");
  const thumbs = [...headsView.thumbs];
  if (order) thumbs.sort((a, b) => b.score - a.score);
  const key = `${order} ${thumbs.map(({ layer, head }) => `${layer}.${head}`)}`;
  if (box.dataset.arranged === key) return;
  box.dataset.arranged = key;
  const focused = document.activeElement;
  const group = (members) => element("div", { className: "thumbs" }, ...members.map(({ button }) => button));
  if (order || layers === 1) box.replaceChildren(group(thumbs));
  else
    box.replaceChildren(
      ...Array.from({ length: layers }, (_, layer) => [
        element("h3", {}, `Layer ${layer + 1}`),
        group(thumbs.slice(layer * heads, (layer + 1) * heads)),
      ]).flat(),
    );
  if (box.contains(focused)) focused.focus();
}

/** Marks the head that is shown large (all of the layer for ALL). */
function markHeads(layer, head) {
  const first = headsView.thumbs.find((thumb) => thumb.layer === layer && (head === ALL || thumb.head === head));
  for (const thumb of headsView.thumbs) {
    const current = thumb.layer === layer && (head === ALL || thumb.head === head);
    thumb.button.setAttribute("aria-current", String(current));
    thumb.button.tabIndex = thumb === first ? 0 : -1;
  }
}

/** Draws what is in view and out of date, a few milliseconds at a time. */
function drawThumbs(frame = headsView.wanted?.frame, units = headsView.wanted?.units) {
  headsView.wanted = frame && { frame, units };
  if (!frame || headsView.running) return;
  headsView.running = true;
  requestAnimationFrame(function turn() {
    const start = performance.now();
    const { frame, units } = headsView.wanted;
    const theme = isDark() ? "dark" : "light";
    const key = `${frame.index} ${units.name} ${theme}`;
    const due = [...headsView.visible].filter((thumb) => thumb.drawn !== key);
    while (due.length && performance.now() - start < TURN) drawThumb(due.shift(), frame, units, theme, key);
    headsView.running = due.length > 0;
    if (due.length) requestAnimationFrame(turn);
  });
}

function drawThumb(thumb, frame, units, theme, key) {
  const tokens = oneHead(frame, thumb.layer, thumb.head);
  const weights = units === byWords ? betweenWords(tokens) : tokens;
  const image = rasterise(weights, units.size, Math.ceil(units.size / THUMB_POINTS), theme);
  Object.assign(thumb.canvas, { width: image.width, height: image.height });
  thumb.canvas.getContext("2d").drawImage(image, 0, 0);
  thumb.drawn = key;
}

/** Draws all pictures at once: before printing there is no later. */
function drawAllThumbs() {
  if (!headsView.wanted) return;
  const { frame, units } = headsView.wanted;
  const theme = isDark() ? "dark" : "light";
  for (const thumb of headsView.thumbs) drawThumb(thumb, frame, units, theme, `${frame.index} ${units.name} ${theme}`);
}

/** Arrow keys among the pictures, in the order in which they lie. */
function moveInHeads(event, onchoose) {
  const buttons = [...byId("heads").querySelectorAll(".thumb")];
  const at = buttons.indexOf(event.target);
  if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const top = (button) => button.getBoundingClientRect().top;
  const columns = Math.max(1, buttons.filter((button) => top(button) === top(buttons[0])).length);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: buttons.length - 1 - at };
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  const { thumb } = buttons[clamp(at + steps[event.key], 0, buttons.length - 1)];
  onchoose(thumb.layer, thumb.head);
  thumb.button.focus();
}

// ---- the table of scores

const scoreTable = { by: "layer", descending: false };

/** The table for a frame, if it is open. */
function paintScores(frame, onchoose) {
  if (!byId("scores").open) return;
  const rows = headsView.thumbs.map(({ layer, head }) => ({ layer, head, ...frame.scores[layer][head] }));
  const { by, descending } = scoreTable;
  const rank = (row) => (by === "layer" ? row.layer * heads + row.head : (row[by] ?? -1));
  rows.sort((a, b) => (descending ? rank(b) - rank(a) : rank(a) - rank(b)));
  const columns = [["layer", "head"], ...Object.entries(SCORES).map(([key, { name }]) => [key, name])];
  const header = columns.map(([key, name]) => {
    const sort = () => {
      scoreTable.descending = by === key ? !descending : key !== "layer";
      scoreTable.by = key;
      paintScores(frame, onchoose);
    };
    const sorted = by === key ? (descending ? "descending" : "ascending") : "none";
    return element("th", { scope: "col", "aria-sort": sorted }, element("button", { type: "button", onclick: sort }, name));
  });
  const body = rows.map((row) => {
    const name = `layer ${row.layer + 1}, head ${row.head + 1}`;
    const show = element("button", { type: "button", onclick: () => onchoose(row.layer, row.head) }, name);
    const cells = Object.keys(SCORES).map((key) => element("td", {}, row[key] === null ? "–" : row[key].toFixed(3)));
    return element("tr", {}, element("th", { scope: "row" }, show, ` ${nature(row)}`), ...cells);
  });
  byId("scores").querySelector("table").replaceChildren(
    element("thead", {}, element("tr", {}, ...header)),
    element("tbody", {}, ...body),
  );
}

function buildScoreNotes() {
  const notes = Object.values(SCORES).flatMap(({ name, note }) => [element("dt", {}, name), element("dd", {}, note)]);
  const natures = `A head is named after the first three scores where one is at least 0.5; else “itself” (distance below 0.5), “broad”
    (entropy above 0.8 of the most that is possible), “one far token” (telling at least 0.4), or nothing. All are means over tokens from the second on.${inTokens}`;
  byId("score-notes").append(...notes, element("dt", {}, "names"), element("dd", {}, natures));
}
