// Keeps the page at what the server says, as it comes.

import { drawAccuracies, drawGains } from "./chart.js";
import { operate } from "./operator.js";
import { clock, fillAccuracies, fillClients, fillParts, fillRounds, percent } from "./tables.js";

const at = (id) => document.getElementById(id);
const TROUBLE = /refused|clipped|away|stuck|late=(?!none)/;
const MOST_EVENTS = 500;
const LISTEN_AGAIN_MS = 3000;
const PATIENCE_MS = 30000;

let overview = null;
let events = [];
let reading = false;

function kind() {
  return document.querySelector("input[name=kind]:checked").value;
}

function set(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

function show() {
  const seen = overview;
  const paused = seen.paused && !["finished", "stopped"].includes(seen.phase);
  document.title = `${seen.phase} ${seen.version}/${seen.num_rounds} · FedPDPO`;
  set("model", seen.model);
  set("run", seen.run_id);
  set("software", seen.software);
  set("phase", paused ? `${seen.phase}, paused` : seen.phase);
  at("phase").className = `pill ${paused ? "paused" : seen.phase}`;
  set("done-told", `adapter ${seen.version} of ${seen.num_rounds}`);
  at("done").value = seen.version / seen.num_rounds;
  set("waiting", seen.waiting_for ? `waiting for ${seen.waiting_for}` : "");
  const download = at("download");
  download.hidden = !seen.adapter_bytes;
  download.href = `/adapters/${seen.version}.safetensors`;
  fillClients(at("clients"), seen);
  fillRounds(at("rounds"), seen, showRound);
  showAccuracies();
}

function showAccuracies() {
  if (!overview) return;
  drawAccuracies(at("chart"), overview, kind());
  fillAccuracies(at("accuracies"), overview, kind());
  drawGains(at("gains"), overview, kind());
  const newest = overview.measured.at(-1);
  const [shared, own] = [newest?.views.global?.[kind()], newest?.views.personalized?.[kind()]];
  set("spread", shared && own
    ? `Adapter ${newest.version}: worst ${percent(own.worst)} (${own.worst_client}), best ${percent(own.best)} ` +
      `(${own.best_client}); the shared adapter alone gives ${percent(shared.worst)} to ${percent(shared.best)}.`
    : "Nothing was measured yet.");
}

// What is told at a path; null where the server is away, which the header says.
async function told(path) {
  try {
    const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

async function showRound(number) {
  const parts = await told(`/api/rounds/${number}`);
  if (parts) fillParts(at("parts"), number, parts);
}

async function readEvents() {
  if (reading) return; // the next look reads what comes meanwhile
  reading = true;
  for (;;) {
    const found = await told(`/api/events?after=${events[0]?.number ?? 0}`);
    if (!found?.length) break;
    events = [...found.reverse(), ...events].slice(0, MOST_EVENTS);
  }
  reading = false;
  showEvents();
}

function showEvents() {
  const only = at("only-trouble").checked;
  const trouble = (event) => TROUBLE.test(`${event.kind} ${event.message}`);
  at("events").replaceChildren(...events.filter((event) => !only || trouble(event)).map((event) => {
    const item = document.createElement("li");
    const what = document.createElement("strong");
    what.textContent = event.kind.replaceAll("_", " ");
    if (trouble(event)) what.className = "warn";
    item.append(`${clock(event.at_s)} `, what, ` ${event.message}`);
    return item;
  }));
}

function listen() {
  const live = new EventSource("/api/live");
  live.addEventListener("message", (message) => {
    overview = JSON.parse(message.data);
    set("connection", "");
    show();
    readEvents();
  });
  live.addEventListener("error", () => {
    const ended = overview && ["finished", "stopped"].includes(overview.phase);
    set("connection", ended ? "the server has ended" : "the server is away; asking again");
    if (ended) live.close();
    else if (live.readyState === EventSource.CLOSED) setTimeout(listen, LISTEN_AGAIN_MS);
  });
}

new ResizeObserver(showAccuracies).observe(document.querySelector("main"));
at("kind").addEventListener("change", showAccuracies);
at("only-trouble").addEventListener("change", showEvents);
operate();
listen();
