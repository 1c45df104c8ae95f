// The switches, and turning the pages.

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
  const onPaper = element("b", { className: "on-paper" });
  writers.push(() => { onPaper.innerHTML = options.find(([value]) => now() === value)[1]; });
  return element("span", { className: "control" }, element("span", { "aria-hidden": "true" }, label), group, onPaper);
}

function buildControls(place) {
  for (const name of place.dataset.controls.split(" ")) {
    const { label, options } = SWITCHES[name];
    place.append(switchOf(label, options, () => state[name], (value) => change({ [name]: value })));
  }
  place.classList.add("controls");
}

// ---- turning the pages: the step is the address's fragment, so that each can be linked.

const sections = [...document.querySelectorAll("section.step")];
const stepNames = sections.map((section) => section.dataset.step);
const isAll = () => location.hash === "#all";
const stepNow = () => Math.max(0, stepNames.indexOf(location.hash.slice(1)));

function showStep() {
  const now = stepNow();
  document.documentElement.classList.toggle("all-steps", isAll());
  sections.forEach((section, i) => { section.hidden = !isAll() && i !== now; });
  [...byId("steps").children].forEach((item, i) => {
    if (!isAll() && i === now) item.firstChild.setAttribute("aria-current", "step");
    else item.firstChild.removeAttribute("aria-current");
  });
  byId("all").setAttribute("aria-pressed", String(isAll()));
  byId("back").disabled = now === 0;
  byId("next").disabled = now === sections.length - 1;
  const title = sections[now].querySelector("h2").textContent;
  byId("where").innerHTML = `${now + 1} of ${sections.length}<span class="visually-hidden">: ${escapeXml(title)}</span>`;
  document.querySelector(".turn").hidden = isAll();
  scrollTo(0, 0);
}

function turn(by) {
  const to = stepNow() + by;
  if (!isAll() && to >= 0 && to < sections.length) location.hash = stepNames[to];
}

/** Arrow keys turn the page; so do Page Down and Page Up, the keys of a presenter's remote, where they cannot scroll. */
function turnByKey(event) {
  const [isTop, isEnd] = [scrollY <= 0, scrollY + innerHeight >= document.documentElement.scrollHeight - 2];
  const by = { ArrowRight: 1, ArrowLeft: -1, PageDown: isEnd && 1, PageUp: isTop && -1 }[event.key];
  const busy = event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey;
  if (by && !busy && (event.key.startsWith("Page") || !event.target.closest("td"))) turn(by);
}

all = { ...state, ...compute(state) };
all.masked = withMask(all.scores, state.causal);
document.querySelectorAll(".equation").forEach(buildEquation);
document.querySelectorAll("[data-controls]").forEach(buildControls);
buildFuture(byId("future-trial"));
buildTranslation(byId("translation-trial"));
writers.push(() => document.querySelectorAll("[data-if-scaled]").forEach((node) => { node.hidden = state.scale === "one"; }));

byId("steps").append(...sections.map((section, i) => element("li", {},
  element("a", { href: `#${section.dataset.step}`, title: section.dataset.name, "aria-label": `${i + 1}, ${section.dataset.name}` },
    element("span", { className: "number" }, `${i + 1}`), element("span", { className: "name" }, section.dataset.name)))));
byId("back").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
byId("all").addEventListener("click", () => { location.hash = isAll() ? stepNames[0] : "all"; });
byId("reset").addEventListener("click", () => {
  for (const box of document.querySelectorAll("[aria-invalid]")) box.removeAttribute("aria-invalid");
  change(original());
});
// On paper nothing can be opened.
let wasOpen;
addEventListener("beforeprint", () => {
  const [first] = document.getElementsByClassName("printed");
  wasOpen = first.open;
  openPrinted(true);
});
addEventListener("afterprint", () => openPrinted(wasOpen));
addEventListener("hashchange", showStep);
addEventListener("keydown", turnByKey);
themeButton(byId("theme"));
refresh();
showStep();
