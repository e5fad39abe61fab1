// Draws accuracies: over the adapters, and before and after personalisation by client.

const NS = "http://www.w3.org/2000/svg";
const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [260, 48, 12, 12, 28];

function add(parent, name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function canvas(title, width, height) {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", title);
  return svg;
}

// A unit of the picture is a pixel, so that its letters are as large as the page's.
const widthOf = (into) => Math.max(260, into.clientWidth);

const line = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** The mean over clients by adapter, with and without private parts, the band from worst to best. */
export function drawAccuracies(into, overview, kind) {
  const measured = overview.measured.filter((one) => Object.keys(one.views).length);
  if (!measured.length) {
    into.textContent = "Nothing was measured yet.";
    return;
  }
  const values = measured.flatMap((one) => Object.values(one.views).flatMap((view) => [view[kind].worst, view[kind].best]));
  const low = Math.max(0, Math.floor(Math.min(...values) * 10 - 0.01) / 10);
  const high = Math.min(1, Math.ceil(Math.max(...values) * 10 + 0.01) / 10);
  const first = measured[0].version;
  const last = Math.max(first + 1, overview.num_rounds <= 4 * measured.length ? overview.num_rounds : measured.at(-1).version);
  const width = widthOf(into);
  const x = (version) => LEFT + ((version - first) / (last - first)) * (width - LEFT - RIGHT);
  const y = (share) => TOP + ((high - share) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const mean = measured.at(-1).views.personalized?.[kind].mean;
  const svg = canvas(`Accuracy of the ${kind} reward over ${measured.length} adapters` +
    (mean === undefined ? "" : `; personalised mean now ${(100 * mean).toFixed(1)} %`), width, HEIGHT);
  for (let share = low; share <= high + 1e-9; share += (high - low) / 4 || 1) {
    add(svg, "path", { class: "grid", d: `M${LEFT} ${y(share)}H${width - RIGHT}` });
    add(svg, "text", { x: LEFT - 6, y: y(share) + 4, "text-anchor": "end" }, `${(100 * share).toFixed(0)} %`);
  }
  const step = Math.max(1, Math.ceil((last - first) / (width / 60)));
  for (let version = first; version <= last; version += step) {
    add(svg, "text", { x: x(version), y: HEIGHT - 8, "text-anchor": "middle" }, `${version}`);
  }
  const series = (view, pick) => measured.filter((one) => one.views[view]).map((one) => [x(one.version), y(pick(one.views[view][kind]))]);
  const band = [...series("personalized", (one) => one.best), ...series("personalized", (one) => one.worst).reverse()];
  if (band.length) add(svg, "path", { class: "band", d: `${line(band)}Z` });
  const names = [...new Set(measured.flatMap((one) => Object.keys(one.by_client)))];
  for (const name of names) {
    const own = measured.filter((one) => one.by_client[name]?.personalized);
    const drawn = add(svg, "path", { class: "client", d: line(own.map((one) => [x(one.version), y(one.by_client[name].personalized[kind])])) });
    add(drawn, "title", {}, name);
  }
  for (const view of ["global", "personalized"]) {
    const points = series(view, (one) => one.mean);
    if (points.length) add(svg, "path", { class: view, d: line(points) });
    for (const [cx, cy] of points.length < 60 ? points : []) {
      add(svg, "circle", { class: view === "global" ? "from" : "to", cx, cy, r: 3 });
    }
  }
  into.replaceChildren(svg);
}

/** For each client the newest accuracy of the shared adapter alone, and with its private parts. */
export function drawGains(into, overview, kind) {
  const newest = overview.measured.at(-1);
  const clients = Object.entries(newest?.by_client ?? {}).filter(([, one]) => one.global && one.personalized);
  if (!clients.length) {
    into.replaceChildren();
    return;
  }
  clients.sort(([, one], [, other]) => one.personalized[kind] - other.personalized[kind]);
  const width = widthOf(into);
  const [row, from] = [30, Math.min(180, 0.4 * width)];
  const letters = Math.floor(from / 7.5);
  const x = (share) => from + share * (width - from - 60);
  const svg = canvas(`Adapter ${newest.version}: each client's accuracy before and after personalisation`, width, row * clients.length + 34);
  for (const share of [0, 0.5, 1]) {
    add(svg, "path", { class: "grid", d: `M${x(share)} 4V${row * clients.length + 8}` });
    add(svg, "text", { x: x(share), y: row * clients.length + 26, "text-anchor": "middle" }, `${100 * share} %`);
  }
  clients.forEach(([name, one], place) => {
    const at = row * place + 20;
    const [before, after] = [one.global[kind], one.personalized[kind]];
    add(svg, "text", { x: from - 14, y: at + 5, "text-anchor": "end" }, name.length > letters ? `${name.slice(0, letters - 1)}…` : name);
    add(svg, "path", { class: "gain", d: `M${x(before)} ${at}H${x(after)}` });
    add(svg, "circle", { class: "from", cx: x(before), cy: at, r: 5 });
    add(svg, "circle", { class: "to", cx: x(after), cy: at, r: 7 });
    add(svg, "text", { x: width - 4, y: at + 5, "text-anchor": "end" }, `${(100 * after).toFixed(0)} %`);
  });
  into.replaceChildren(svg);
}
