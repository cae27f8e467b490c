const stored = JSON.parse(document.getElementById("data").textContent);
const config = stored.provenance.config;
const side = config.picture, size = side * side;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const fields = { mean: bytes(stored.mean), solution: bytes(stored.solution), deviation: bytes(stored.deviation) };
const byId = (id) => document.getElementById(id);
const sliders = { sigma: byId("sigma"), members: byId("members"), draws: byId("draws") };
const reach = 0.25; // of the difference: the same for all sliders, so that it fades as draws are added
const still = matchMedia("(prefers-reduced-motion: reduce)");

// Fields

function averaged(sigma, members, draws) {
  const mean = new Float32Array(size), solution = new Float32Array(size), error = new Float32Array(size);
  for (let member = 0; member < members; member++) {
    const network = sigma * config.members + member;
    const first = (network * config.draws.length + draws) * size, own = network * size;
    for (let i = 0; i < size; i++) {
      mean[i] += fields.mean[first + i] / 255 / members;
      solution[i] += fields.solution[own + i] / 255 / members;
      error[i] += (fields.deviation[own + i] / 255 / members) ** 2 / config.draws[draws];
    }
  }
  return { mean, solution, difference: mean.map((value, i) => value - solution[i]), error: error.map(Math.sqrt) };
}

// Colours: blue at 0, orange at 1, the page's own paper in the middle

function rgb(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function palette() {
  const low = rgb("--c1"), middle = rgb("--paper"), high = rgb("--c2");
  return (share) => {
    const end = share < 0.5 ? low : high, weight = Math.min(1, Math.abs(2 * share - 1));
    return middle.map((value, i) => value + (end[i] - value) * weight);
  };
}

const scaled = { difference: (value) => 0.5 + value / (2 * reach), error: (value) => 0.5 + value / (2 * reach) };

function paint(name, values, colour) {
  const canvas = byId(name), zoom = 8;
  const small = document.createElement("canvas");
  small.width = small.height = side;
  const image = new ImageData(side, side), share = scaled[name] || ((value) => value);
  for (let x = 0; x < side; x++)
    for (let y = 0; y < side; y++) {
      const at = 4 * ((side - 1 - y) * side + x), [r, g, b] = colour(share(values[x * side + y]));
      image.data.set([r, g, b, 255], at);
    }
  small.getContext("2d").putImageData(image, 0, 0);
  canvas.width = canvas.height = side * zoom;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return context;
}

function levelLine(context, values, zoom = 8) { // of 0.5, by marching squares
  const corner = (x, y) => values[x * side + y] - 0.5;
  const place = (x, y) => [(x + 0.5) * zoom, (side - 0.5 - y) * zoom];
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  context.lineWidth = 2.5;
  context.beginPath();
  for (let x = 0; x < side - 1; x++)
    for (let y = 0; y < side - 1; y++) {
      const ring = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], crossings = [];
      ring.forEach(([a, b], i) => {
        const [c, d] = ring[(i + 1) % 4], from = corner(a, b), to = corner(c, d);
        if (from < 0 === to < 0) return;
        const t = from / (from - to);
        crossings.push(place(a + t * (c - a), b + t * (d - b)));
      });
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        context.moveTo(...crossings[i]);
        context.lineTo(...crossings[i + 1]);
      }
    }
  context.stroke();
}

function paintKeys(colour) {
  for (const id of ["probability-key", "difference-key"]) {
    const canvas = byId(id), context = canvas.getContext("2d");
    canvas.width = 96;
    canvas.height = 1;
    for (let x = 0; x < 96; x++) {
      context.fillStyle = `rgb(${colour(x / 95).join(" ")})`;
      context.fillRect(x, 0, 1, 1);
    }
  }
}

// Numbers

const digits = (value) => value.toLocaleString("en", { maximumSignificantDigits: 2, minimumSignificantDigits: 2 });
const percent = (value) => `${(100 * value).toFixed(1)}%`;

function chart(rows, draws, title) {
  const left = 52, right = 388, top = 14, bottom = 226;
  const all = stored.numbers.flat(2).flatMap((row) => [row.rms, row.standard_error]);
  const low = Math.log10(Math.min(...all)) - 0.08, high = Math.log10(Math.max(...all)) + 0.08;
  const last = Math.log2(config.draws.at(-1));
  const x = (n) => left + 12 + (right - left - 24) * Math.log2(n) / last;
  const y = (value) => bottom - (bottom - top) * (Math.log10(value) - low) / (high - low);
  const parts = [`<title>${title}</title>`];
  for (const value of [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
    if (Math.log10(value) > low && Math.log10(value) < high)
      parts.push(`<line class="axis" x1="${left}" x2="${right}" y1="${y(value)}" y2="${y(value)}"/><text x="${left - 6}" y="${y(value) + 4}" text-anchor="end">${value}</text>`);
  config.draws.forEach((n, i) => { if (i % 2 === 0) parts.push(`<text x="${x(n)}" y="${bottom + 18}" text-anchor="middle">${n}</text>`); });
  parts.push(`<text x="${(left + right) / 2}" y="${bottom + 38}" text-anchor="middle">draws of each member</text>`);
  const points = config.draws.map((n, i) => `${x(n)},${y(rows[i].standard_error)}`).join(" ");
  parts.push(`<polyline class="theory" points="${points}"/>`);
  config.draws.forEach((n, i) => parts.push(`<circle class="dot" cx="${x(n)}" cy="${y(rows[i].rms)}" r="4"/>`));
  parts.push(`<circle class="now" cx="${x(config.draws[draws])}" cy="${y(rows[draws].rms)}" r="8"/>`);
  parts.push(`<text class="measured" x="${right}" y="${top + 12}" text-anchor="end">dots: error</text><text class="named" x="${right}" y="${top + 30}" text-anchor="end">line: standard error ∝ 1/√draws</text>`);
  byId("chart").innerHTML = parts.join("");
}

function show() {
  const [sigma, members, draws] = ["sigma", "members", "draws"].map((name) => Number(sliders[name].value));
  const n = config.draws[draws], rows = stored.numbers[sigma][members - 1], row = rows[draws];
  const said = { sigma: `${config.sigmas[sigma]}`, members: `${members}`, draws: `${n}` };
  for (const name in said) {
    byId(`${name}-value`).textContent = said[name];
    sliders[name].setAttribute("aria-valuetext", said[name]);
  }
  const shown = averaged(sigma, members, draws), colour = palette();
  for (const name of ["mean", "solution", "difference", "error"]) {
    const context = paint(name, shown[name], colour);
    if (name === "mean" && n * members >= 16 || name === "solution") levelLine(context, shown[name]);
  }
  paintKeys(colour);
  const where = `σ ${said.sigma}, ${members} member${members > 1 ? "s" : ""}, ${n} draw${n > 1 ? "s" : ""} of each`;
  byId("mean").setAttribute("aria-label", `Heat map of the mean of the networks: ${where}`);
  byId("solution").setAttribute("aria-label", `Heat map of the solution of the equation: σ ${said.sigma}`);
  byId("difference").setAttribute("aria-label", `Heat map of their difference, rms ${digits(row.rms)}`);
  byId("error").setAttribute("aria-label", `Heat map of the standard error, rms ${digits(row.standard_error)}`);
  byId("sentence").textContent = `${where}: the mean is ${digits(row.rms)} from u (rms), where draws alone leave ${digits(row.standard_error)}.`;
  byId("rms").textContent = digits(row.rms);
  byId("standard-error").textContent = digits(row.standard_error);
  byId("largest").textContent = digits(row.largest);
  byId("within").textContent = percent(row.within);
  byId("grid-error").textContent = digits(row.grid_error);
  chart(rows, draws, `Error and standard error by number of draws, both in logarithms: ${where}`);
  byId("table-title").textContent = `σ ${said.sigma}, ${members} member${members > 1 ? "s" : ""}`;
  byId("table").innerHTML = rows.map((each, i) => `<tr${i === draws ? ' class="now"' : ""}><th scope="row">${config.draws[i]}</th><td>${digits(each.rms)}</td><td>${digits(each.standard_error)}</td><td>${digits(each.largest)}</td><td>${percent(each.within)}</td></tr>`).join("");
}

// Draws added one slider step after the other; at once for those who asked for less motion

let timer = 0;

function stop() {
  clearInterval(timer);
  timer = 0;
  byId("play").textContent = "Add draws";
}

byId("play").addEventListener("click", () => {
  if (timer) return stop();
  const most = Number(sliders.draws.max);
  if (still.matches) {
    sliders.draws.value = most;
    return show();
  }
  if (Number(sliders.draws.value) === most) sliders.draws.value = 0;
  byId("play").textContent = "Stop";
  timer = setInterval(() => {
    sliders.draws.value = Number(sliders.draws.value) + 1;
    show();
    if (Number(sliders.draws.value) === most) stop();
  }, 700);
  return show();
});
for (const name in sliders) sliders[name].addEventListener("input", () => { stop(); show(); });
byId("sliders").addEventListener("submit", (event) => event.preventDefault());
byId("theme").addEventListener("click", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
for (const each of document.querySelectorAll(".reach")) each.textContent = reach;
byId("sliders").hidden = false;
show();
