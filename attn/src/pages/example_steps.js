// Turning the pages: the step is the address's fragment, so that each can be linked.

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
  if (by && !busy && !event.target.closest("input, td")) turn(by);
}

all = { ...state, ...compute(state) };
all.masked = withMask(all.scores, state.causal);
document.querySelectorAll(".equation").forEach(buildEquation);
document.querySelectorAll("[data-controls]").forEach(buildControls);
buildFuture(byId("future"));
buildTranslation(byId("translation"));
writers.push(() => document.querySelectorAll("[data-if-scaled]").forEach((node) => { node.hidden = state.scale === "one"; }));

byId("steps").append(...sections.map((section, i) => element("li", {},
  element("a", { href: `#${section.dataset.step}`, title: section.dataset.name, "aria-label": `${i + 1}, ${section.dataset.name}` },
    element("span", { className: "number" }, `${i + 1}`), element("span", { className: "name" }, section.dataset.name)))));
byId("back").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
byId("all").addEventListener("click", () => { location.hash = isAll() ? stepNames[0] : "all"; });
byId("reset").addEventListener("click", () => change(original()));
addEventListener("hashchange", showStep);
addEventListener("keydown", turnByKey);
themeButton(byId("theme"));
refresh();
showStep();
