// The page: a task lays out a timeline of cells, each given or to be generated. What is sent is the timeline,
// whatever the task.
"use strict";

const TASKS = {
  predict: {title: "what happens next", at: "known up to frame"},
  backward: {title: "what happened before", at: "known from frame"},
  interpolate: {title: "what happened between", at: "gap after frame"},
  generate: {title: "new videos"},
  fill: {title: "any frames", at: "from frame"},
};
const RUNNING_EVERY = 300; // ms between two checks of an order's progress
const AWAY_EVERY = 3000; // while the server does not answer
const $ = (id) => document.getElementById(id);
const state = {
  model: null, task: null, clips: [null, null], files: [null, null], turns: [0, 0], cells: [], changed: new Map(),
};

// ------------------------------------------------------------------------------------------------- talking

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("the server does not answer; is mcvd serve still running?"), {away: true});
  }
  if (answer.status === 204) return null;
  const said = await answer.json().catch(() => ({error: `the server failed (${answer.status})`}));
  if (!answer.ok) throw new Error(said.error || `the server failed (${answer.status})`);
  return said;
}

function attempt(work) {
  $("error").textContent = "";
  return Promise.resolve().then(work).catch((error) => {
    $("error").textContent = error.message;
    $("error").scrollIntoView({block: "nearest"}); // it may be far below a long row of frames
  });
}

// ------------------------------------------------------------------------------------------------- drawing

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Shows frame i of a clip in a div: the clip is one picture of all frames, of which the div shows a part.
function show(div, clip, i) {
  const columns = state.model.columns, rows = Math.ceil(clip.frames / columns);
  div.style.backgroundImage = `url(clips/${clip.id}/grid.png)`;
  div.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
  const x = columns > 1 ? (i % columns) / (columns - 1) : 0, y = rows > 1 ? Math.floor(i / columns) / (rows - 1) : 0;
  div.style.backgroundPosition = `${x * 100}% ${y * 100}%`;
}

const counted = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

const frame = (clip, i) => {
  const div = element("div", {className: "frame"});
  if (clip) show(div, clip, i);
  return div;
};

// All players of the page follow one clock.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) setInterval(() => {
  for (const div of document.querySelectorAll(".player")) {
    const {clip, fps} = div.playing;
    show(div, clip, Math.floor(performance.now() / 1000 * fps) % clip.frames);
  }
}, 40);

// ------------------------------------------------------------------------------------------------ timeline

// The value of a field, within its bounds: browsers accept others, too.
const number = (id) => {
  const {min, max, value} = $(id);
  return Math.min(Math.max(Math.floor(Number(value) || 0), Number(min || 0)), Number(max || Infinity));
};
const run = (clip, from, to, given) =>
  Array.from({length: Math.max(to - from, 0)}, (_, i) => clip && from + i >= 0 && from + i < clip.frames
    ? {clip, frame: from + i, given} : {clip: null, given: false});

const placeOf = ({clip, frame}) => `${clip.id} ${frame}`;

// Lays out the cells of the task from the fields; clicked cells keep their state.
function lay() {
  if (!state.task) return; // the model is not known yet
  const [a, b] = state.clips, at = number("at"), given = number("given"), make = number("make");
  const cells = {
    predict: () => a
      ? [...run(a, Math.max(at + 1 - given, 0), at + 1, true), ...run(a, at + 1, at + 1 + make, false)] : [],
    backward: () => a ? [...run(a, at - make, at, false), ...run(a, at, Math.min(at + given, a.frames), true)] : [],
    interpolate: () => !a ? [] : b
      ? [...run(a, Math.max(a.frames - given, 0), a.frames, true), ...run(null, 0, make, false),
         ...run(b, 0, Math.min(given, b.frames), true)]
      : [...run(a, Math.max(at + 1 - given, 0), at + 1, true), ...run(a, at + 1, at + 1 + make, false),
         ...run(a, at + 1 + make, Math.min(at + 1 + make + given, a.frames), true)],
    generate: () => run(null, 0, make, false),
    fill: () => a ? run(a, at, Math.min(at + make, a.frames), true) : [],
  }[state.task]();
  for (const cell of cells) if (cell.clip) cell.given = state.changed.get(placeOf(cell)) ?? cell.given;
  state.cells = cells;
  $("timeline").replaceChildren(...cells.map((cell, i) => {
    const kind = cell.given ? "given" : cell.clip ? "" : "blank";
    const what = `frame ${i}, ${cell.given ? "given" : "to be generated"}`;
    const button = element("button", {type: "button", className: kind, title: what, ariaLabel: what},
      frame(cell.clip, cell.frame), element("small", {textContent: i}));
    button.onclick = () => {
      if (!cell.clip) return;
      state.changed.set(placeOf(cell), !cell.given);
      lay();
      $("timeline").children[i].focus();
    };
    return button;
  }));
  if (!cells.length) {
    const other = state.model.tasks.includes("generate") ? ", or start with new videos" : "";
    const textContent = `no clip yet: drop one above${other}`;
    $("timeline").append(element("p", {className: "note", textContent}));
  }
  $("hint").hidden = !cells.some((cell) => cell.clip);
  $("at-shown").textContent = at;
  $("go").disabled = !cells.some((cell) => !cell.given);
}

// Which fields the task has, and their ranges. Requested numbers of frames survive a change of clip.
function choose(task) {
  const begins = task !== state.task;
  state.task = task;
  state.changed.clear();
  const {model, clips: [a, b]} = state, between = task === "interpolate", fill = task === "fill";
  for (const button of $("tasks").children) button.ariaPressed = String(button.value === task);
  $("source").querySelector(".drops").hidden = task === "generate";
  $("drop-1").hidden = !between;
  for (const name of ["stride", "fit"]) $(`field-${name}`).hidden = task === "generate";
  $("field-given").hidden = task === "generate" || fill;
  $("field-at").hidden = task === "generate" || !a || (between && Boolean(b));
  $("field-make").firstChild.data = fill ? "show " : "generate ";
  $("at-words").textContent = TASKS[task].at || "";
  if (begins) {
    $("given").value = Math.max(task === "backward" ? model.future : model.past, 1);
    $("make").value = fill ? model.past + model.current + model.future : model.current;
  }
  if (a) {
    $("at").max = a.frames - 1;
    $("at").value = {predict: a.frames - 1, interpolate: Math.min(number("given"), a.frames) - 1}[task] ?? 0;
    if (fill) { // start with the gap that the model was trained for
      const from = model.past, to = Math.min(from + model.current, a.frames);
      for (const cell of run(a, from, to)) state.changed.set(placeOf(cell), false);
    }
  }
  lay();
}

// --------------------------------------------------------------------------------------------------- clips

function place(slot, clip) {
  state.clips[slot] = clip;
  const drop = $(`drop-${slot}`);
  drop.classList.add("full");
  drop.querySelector("b").textContent = clip.name;
  const here = counted(clip.frames, "frame");
  drop.querySelector("span").textContent = `${clip.was}; ${here} loaded. Drop another to replace it`;
  $("without").hidden = !state.clips[1];
  choose(state.task !== "generate" ? state.task : state.model.tasks.includes("predict") ? "predict" : "fill");
}

const NO_SECOND = [...$("drop-1").querySelectorAll("b, span")].map((part) => part.textContent);

$("without").addEventListener("click", (event) => {
  event.preventDefault(); // it is in a label, which would open the file dialog
  const drop = $("drop-1");
  state.clips[1] = state.files[1] = null;
  state.turns[1]++;
  drop.classList.remove("full");
  [drop.querySelector("b").textContent, drop.querySelector("span").textContent] = NO_SECOND;
  $("without").hidden = true;
  choose(state.task);
});

async function send(slot, file) {
  const words = $(`drop-${slot}`).querySelector("span"), before = words.textContent;
  const turn = ++state.turns[slot];
  words.textContent = "reading ...";
  const query = new URLSearchParams({name: file.name, stride: number("stride"), fit: $("fit").value});
  try {
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Error(`cannot read ${file.name}: it is a folder, or no longer there`);
    });
    const clip = await ask(`clips?${query}`, {method: "POST", body: file});
    if (turn !== state.turns[slot]) return; // another was chosen meanwhile
    state.files[slot] = file;
    place(slot, clip);
  } catch (error) {
    words.textContent = before;
    throw error;
  }
}

for (const slot of [0, 1]) {
  const drop = $(`drop-${slot}`), input = drop.querySelector("input");
  const over = (on) => (event) => { event.preventDefault(); drop.classList.toggle("over", on); };
  drop.addEventListener("dragover", over(true));
  drop.addEventListener("dragleave", over(false));
  drop.addEventListener("drop", (event) => {
    over(false)(event);
    const {files} = event.dataTransfer;
    if (files.length) attempt(() => {
      if (files.length > 1) throw new Error("one file at a time: a video, a GIF or an npz");
      return send(slot, files[0]);
    });
  });
  input.addEventListener("change", () => {
    const file = input.files[0];
    input.value = ""; // so that the same file can be chosen again
    if (file) attempt(() => send(slot, file));
  });
}
for (const kind of ["dragover", "drop"]) { // dropped elsewhere, the file would replace the page
  window.addEventListener(kind, (event) => event.preventDefault());
}
for (const id of ["stride", "fit"]) {
  $(id).addEventListener("change", () => attempt(async () => {
    for (const slot of [0, 1]) if (state.files[slot]) await send(slot, state.files[slot]);
  }));
}
for (const id of ["at", "given", "make"]) $(id).addEventListener("input", lay);

// -------------------------------------------------------------------------------------------------- orders

$("order").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const {cells, task, clips: [a]} = state;
    const order = {
      timeline: cells.map((cell) => cell.clip && {clip: cell.clip.id, frame: cell.frame, given: cell.given}),
      samples: number("samples"), seed: number("seed"), solver: $("solver").value,
      steps: $("steps").value ? number("steps") : null, guidance: Number($("guidance").value),
      name: task === "generate" ? "new video" : `${a.name.replace(/\.[^.]*$/, "")}, ${task}`,
    };
    const {id} = await ask("orders", {method: "POST", body: JSON.stringify(order)});
    follow(id, order, cells);
  });
});

function follow(id, order, cells) {
  const note = element("span", {className: "note"}), bar = element("progress", {ariaLabel: order.name});
  const stop = element("button", {type: "button", className: "link", textContent: "stop"});
  const job = element("article", {className: "job"},
    element("h2", {}, order.name, note, stop), bar);
  $("results").prepend(job);
  stop.onclick = () => attempt(() => ask(`orders/${id}`, {method: "DELETE"}));
  const steps = order.steps ?? state.model.solvers[order.solver].steps;
  const how = `${order.solver}, ${counted(steps, "step")}, seed ${order.seed}`
    + (order.guidance === 1 ? "" : `, guidance ${order.guidance}`);

  const look = async () => {
    const now = await ask(`orders/${id}`);
    if (now.state === "waiting" || now.state === "running") {
      if (now.total) bar.max = now.total, bar.value = now.done;
      note.textContent = now.state === "waiting" ? "waiting for earlier orders"
        : now.left === null ? "starting" : `${Math.ceil(now.left)} s left`;
      again(RUNNING_EVERY);
      return;
    }
    bar.remove();
    stop.remove();
    if (now.state === "failed") throw new Error(now.error);
    if (now.state === "cancelled") note.textContent = "stopped";
    else finish(job, note, id, order, cells, now, how);
  };
  const again = (ms) => setTimeout(() => look().catch(fail), ms);
  const fail = (error) => {
    note.textContent = error.message;
    if (error.away) return again(AWAY_EVERY);
    bar.remove();
    stop.remove();
  };
  look().catch(fail);
}

function finish(job, note, id, order, cells, now, how) {
  note.textContent = `${how}; ${counted(Math.max(...now.blocks), "block")}, ${now.seconds.toFixed(1)} s`;
  const sheet = {href: `orders/${id}/sheet.png`, target: "_blank", textContent: "contact sheet"};
  job.querySelector("h2").append(element("a", sheet));
  const rows = element("div", {className: "rows"});
  if (cells.some((cell) => cell.clip && !cell.given)) {
    rows.append(row(null, [element("b", {textContent: "real"})], cells.map((cell) => {
      const div = frame(cell.clip, cell.frame);
      div.classList.add(cell.given ? "given" : cell.clip ? "unseen" : "absent");
      return div;
    })));
  }
  const gone = order.samples - now.clips.length; // the first samples
  if (gone) note.textContent += `; ${gone} of ${order.samples} were dropped for newer clips`;
  now.clips.forEach((clip, i) => {
    const words = [element("b", {textContent: order.samples > 1 ? `sample ${gone + i + 1}` : "sample"}), element("br")];
    for (const suffix of ["mp4", "gif", "npz"]) {
      words.push(element("a", {href: `clips/${clip.id}/file.${suffix}`, textContent: suffix}), " ");
    }
    const use = element("button", {type: "button", className: "link", textContent: "continue from it"});
    use.onclick = () => { state.files[0] = null; place(0, clip); window.scrollTo({top: 0, behavior: "smooth"}); };
    words.push(element("br"), use);
    rows.append(row(clip, words, now.blocks.map((block, j) => {
      const div = frame(clip, j);
      div.classList.add(block ? "made" : "given");
      div.title = `frame ${j}, ${block ? `generated in block ${block}` : "given"}`;
      return div;
    })));
  });
  job.append(rows);

  function row(clip, words, frames) {
    const player = element("div", {className: "frame"});
    if (clip) player.classList.add("player"), player.playing = {clip, fps: Math.min(now.fps, 25)};
    else player.classList.add("absent");
    return element("div", {className: "row"},
      element("div", {className: "head"}, element("div", {className: "words"}, ...words), player), ...frames);
  }
}

// --------------------------------------------------------------------------------------------------- begin

attempt(async () => {
  const model = state.model = await ask("model");
  document.title = `mcvd: ${model.name}`;
  $("model").textContent = `${model.name}: ${model.width}x${model.height} ${model.channels === 1 ? "grey" : "RGB"}, `
    + `${model.past} past, ${model.current} current, ${model.future} future frames, on ${model.device}`;
  document.documentElement.style.setProperty("--wide", model.width / model.height);
  $("stride").value = model.stride;
  $("samples").max = model.most_samples;
  $("make").max = model.most_frames;
  for (const [name, {summary}] of Object.entries(model.solvers)) {
    const selected = name === model.solver;
    $("solver").append(element("option", {value: name, textContent: name, title: summary, selected}));
  }
  const steps = () => { $("steps").placeholder = model.solvers[$("solver").value].steps; };
  $("solver").addEventListener("change", steps);
  steps();
  const can = new Set([...model.tasks, "fill"]);
  for (const [name, {title}] of Object.entries(TASKS)) {
    const button = element("button", {type: "button", value: name, textContent: title, disabled: !can.has(name)});
    if (!can.has(name)) button.title = "the model was not trained for this";
    button.onclick = () => attempt(() => choose(name));
    $("tasks").append(button);
  }
  choose(Object.keys(TASKS).find((name) => can.has(name)));
  for (const {id, order, clips} of await ask("orders")) { // from an earlier visit
    follow(id, order, order.timeline.map((cell) => cell && clips[cell.clip]
      ? {...cell, clip: clips[cell.clip]} : {clip: null, given: Boolean(cell && cell.given)}));
  }
});
