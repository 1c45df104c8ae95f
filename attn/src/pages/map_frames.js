// The slider over steps of training, its play button, and the loss curve with a marker.

const FRAME_TIME = 450; // ms a frame is shown while playing; a calm second where less motion is wanted
const PLOT = { width: 440, height: 100, left: 30, right: 8, top: 6, bottom: 20 };

const player = { playing: false, timer: 0 };

/** Builds the slider; `onframe(index)` returns a promise that is kept once the frame is drawn. */
function buildFrames(onframe) {
  if (data.frames.length < 2) return;
  byId("player").hidden = false;
  byId("frame-keys").hidden = false;
  const slider = byId("frame");
  slider.max = data.frames.length;
  slider.addEventListener("input", () => {
    stop();
    // At once: a screen reader tells the change before the frame is drawn.
    slider.setAttribute("aria-valuetext", frameName(Number(slider.value) - 1));
    onframe(Number(slider.value) - 1);
  });
  byId("play").addEventListener("click", () => (player.playing ? stop() : play(onframe)));
  if (data.losses) buildLosses(onframe);
}

function stop() {
  player.playing = false;
  clearTimeout(player.timer);
  byId("play").textContent = "Play";
}

/** Shows the frames to the last, from the first if the last is shown. */
async function play(onframe) {
  player.playing = true;
  byId("play").textContent = "Pause";
  const last = data.frames.length - 1;
  let index = Number(byId("frame").value) - 1;
  index = index === last ? 0 : index + 1;
  const step = async () => {
    await onframe(index);
    if (index === last) stop();
    if (!player.playing) return;
    index += 1;
    loadFrame(index).catch(() => {}); // unpacked while this one is looked at; a failure is told when its turn comes
    player.timer = setTimeout(step, reducedMotion() ? 1000 : FRAME_TIME);
  };
  await step();
}

/** The slider, its label and the marker at a frame. */
function paintFrame(frame) {
  if (data.frames.length < 2) return;
  const slider = byId("frame");
  slider.value = frame.index + 1;
  const words = frameName(frame.index);
  slider.setAttribute("aria-valuetext", words);
  byId("frame-label").textContent = words;
  const marker = byId("losses").querySelector(".marker");
  if (marker && frame.step !== null) marker.setAttribute("transform", `translate(${plotX(frame.step)} 0)`);
}

const frameName = (index) => [data.frames[index].label, ...lossesOf(index)].join(", ");

/** The training loss nearest to a frame's step; for the model itself, the last, also the validation loss at it. */
function lossesOf(index) {
  const { step } = data.frames[index];
  if (step === null || !data.losses) return [];
  const { training, validation } = data.losses;
  const away = ([at]) => Math.abs(at - step);
  const nearest = training.reduce((best, point) => (best && away(best) <= away(point) ? best : point), null);
  const measured = index === data.frames.length - 1 ? validation.find((point) => away(point) === 0) : null;
  const named = [["training", nearest], ["validation", measured]].filter(([, point]) => point);
  return named.map(([name, [, loss]]) => `${name} loss ${loss.toFixed(2)}`);
}

const allLosses = data.losses ? [...data.losses.training, ...data.losses.validation] : [];
const lastStep = [...data.frames.map(({ step }) => step ?? 0), ...allLosses.map(([step]) => step)].reduce((a, b) => Math.max(a, b), 1);
const plotX = (step) => PLOT.left + (step / lastStep) * (PLOT.width - PLOT.left - PLOT.right);

function buildLosses(onframe) {
  const { width, height, left, right, top, bottom } = PLOT;
  const values = allLosses.map(([, loss]) => loss).filter(Number.isFinite);
  if (!values.length) return;
  byId("frames").hidden = false;
  const [low, high] = values.reduce(([low, high], loss) => [Math.min(low, loss), Math.max(high, loss)], [Infinity, -Infinity]);
  const y = (loss) => height - bottom - ((loss - low) / (high - low || 1)) * (height - top - bottom);
  const curve = (points, name) => {
    const finite = points.filter(([, loss]) => Number.isFinite(loss));
    const path = finite.map(([step, loss]) => `${plotX(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
    return svgElement("polyline", { points: path, class: `curve ${name}` });
  };
  const text = (words, x, down, anchor) => svgElement("text", { x, y: down, "text-anchor": anchor, class: "axis" }, words);
  const plot = byId("losses");
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  plot.setAttribute("aria-label", `Loss during training, from ${high.toFixed(2)} down to ${low.toFixed(2)}`);
  plot.append(
    text(high.toFixed(1), left - 6, top + 8, "end"),
    text(low.toFixed(1), left - 6, height - bottom, "end"),
    text("step 0", left, height - 5, "start"),
    text(`step ${grouped(lastStep)}`, width - right, height - 5, "end"),
    svgElement("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "grid" }),
    curve(data.losses.training, "thin"),
    curve(data.losses.validation, "thick"),
    ...data.frames.filter(({ step }) => step !== null).map(({ step }) =>
      svgElement("line", { x1: plotX(step), x2: plotX(step), y1: height - bottom - 5, y2: height - bottom, class: "tick" })),
    svgElement("line", { x1: 0, x2: 0, y1: top, y2: height - bottom, class: "marker" }),
  );
  plot.addEventListener("click", (event) => {
    const frame = plot.getBoundingClientRect();
    const at = ((event.clientX - frame.left) / frame.width) * width;
    const away = data.frames.map(({ step }) => (step === null ? Infinity : Math.abs(plotX(step) - at)));
    stop();
    onframe(away.indexOf(Math.min(...away)));
  });
}
