"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  /* Sorting: every row is a tbody of its own, so that its card travels with it. */
  function sortTable(table, head, descending) {
    const heads = all("thead th", table);
    const column = heads.indexOf(head);
    const numeric = head.classList.contains("num");
    const cell = (body) => body.rows[0].cells[column].dataset.sort;
    const sign = descending ? -1 : 1;
    const rows = all("tbody", table).map((body) => ({ body, key: cell(body) }));
    rows.sort((a, b) => {
      if (!a.key || !b.key) return (a.key ? 0 : 1) - (b.key ? 0 : 1);  // what is missing comes last
      return sign * (numeric ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true }));
    });
    table.append(...rows.map((row) => row.body));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    if (head.dataset.kind === "score") showRanks(table, heads.filter((h) => h.dataset.kind === "score").indexOf(head));
    const select = table.closest(".group").querySelector(".sort select");
    select.value = String(column);
  }

  function showRanks(table, score) {
    for (const body of all("tbody", table)) {
      const place = body.dataset.ranks.split(" ")[score];
      body.querySelector("td.rank").textContent = place && place !== "-" ? place : "–";
    }
  }

  function firstOrder(head) {
    return head.dataset.better === "higher";  // best first; names and costs rise
  }

  for (const table of all(".group table")) {
    const heads = all("thead th", table);
    const select = table.closest(".group").querySelector(".sort select");
    heads.forEach((head, index) => {
      const button = head.querySelector("button");
      if (!button) return;
      select.add(new Option(head.title.split(":")[0] || button.textContent.trim(), String(index)));
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sortTable(table, head, now ? now === "ascending" : firstOrder(head));
      });
    });
    const current = heads.findIndex((head) => head.hasAttribute("aria-sort"));
    if (current >= 0) select.value = String(current);
    select.addEventListener("change", () => {
      const head = heads[Number(select.value)];
      sortTable(table, head, firstOrder(head));
    });
  }

  /* Filtering: every word must stand somewhere in the row's text. */
  const filter = document.querySelector(".filter");
  const input = filter.querySelector("input");
  const output = filter.querySelector("output");
  const bodies = all(".group tbody[data-text]");

  function applyFilter() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const body of bodies) {
      body.hidden = !words.every((word) => body.dataset.text.includes(word));
      shown += !body.hidden;
    }
    for (const box of all(".group, .dataset, .elsewhere")) {
      box.hidden = words.length > 0 && !box.querySelector("tbody[data-text]:not([hidden])");
    }
    const elsewhere = document.querySelector("details.elsewhere");
    if (elsewhere && words.length) elsewhere.open = true;
    for (const point of all(".plot a")) {
      point.classList.toggle("off", document.getElementById(point.dataset.row).hidden);
    }
    document.querySelector(".none").hidden = shown > 0 || words.length === 0;
    output.textContent = `${words.length ? `${shown} of ` : ""}${bodies.length} rows`;
  }
  filter.addEventListener("submit", (event) => event.preventDefault());
  input.addEventListener("input", applyFilter);

  /* Pictures. */
  const dialog = document.querySelector("dialog");
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".picture button");
    if (button) {
      const small = button.querySelector("img");
      const large = dialog.querySelector("img");
      large.src = small.src;
      large.alt = small.alt;
      dialog.querySelector("p").textContent = small.alt;
      dialog.showModal();
    } else if (event.target === dialog) {
      dialog.close();  // a click on the backdrop
    }
  });

  /* Quality against cost. */
  const SVG = "http://www.w3.org/2000/svg";
  function draw(tag, attributes, parent, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  /* Any finite numbers: also those whose difference, or whose neighbours, no double can tell. */
  function makeScale(values, from, to, logRatio) {
    let low = Math.min(...values), high = Math.max(...values);
    const log = low > 0 && high / low > logRatio;
    const largest = Math.max(Math.abs(low), Math.abs(high));
    if (log) {
      low = Math.max(low / 1.15, Number.MIN_VALUE); high = Math.min(high * 1.15, Number.MAX_VALUE);
    } else {
      const span = high / 2 - low / 2;
      const room = (span > largest * 1e-9 ? span * 0.16 : 0) || largest * 0.1 || 1;
      low = low >= 0 && low < room ? 0 : Math.max(low - room, -Number.MAX_VALUE);
      high = Math.min(high + room, Number.MAX_VALUE);
    }
    const unit = Math.max(Math.abs(low), Math.abs(high));
    const f = log ? Math.log : (v) => v / unit;
    const scale = (v) => from + ((f(v) - f(low)) / (f(high) - f(low))) * (to - from);
    return { scale, ticks: log ? logTicks(low, high) : linearTicks(low, high) };
  }

  function linearTicks(low, high) {
    const rough = high / 5 - low / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) || rough;
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const first = Math.ceil(low / step);
    const ticks = [];
    for (let i = 0; i <= 12; i++) {
      const tick = (first + i) * step;
      if (tick > high) break;
      const plain = decimals < 8 && Math.abs(tick) < 1e9;
      ticks.push([tick, plain ? tick.toFixed(decimals) : short(tick)]);
    }
    return ticks;
  }

  function logTicks(low, high) {
    const ticks = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const m of [1, 2, 5]) {
        const tick = m * 10 ** p;
        if (tick > 0 && tick >= low && tick <= high) ticks.push(tick);
      }
    }
    const powers = ticks.filter((tick) => Math.abs(Math.log10(tick) - Math.round(Math.log10(tick))) < 1e-9);
    const chosen = ticks.length > 8 ? powers : ticks;
    const every = Math.ceil(chosen.length / 8);
    return chosen.filter((_, i) => i % every === 0).map((tick) => [tick, short(tick)]);
  }

  function short(value) {
    const digits = Number(value.toPrecision(4));
    return Math.abs(digits) >= 1e9 ? digits.toExponential() : String(digits);
  }

  function drawChart(figure, data, quality, cost) {
    const plot = figure.querySelector(".plot");
    const column = data.columns[quality];
    const points = data.points.filter((p) => p.scores[quality] && p.costs[cost] !== undefined);
    plot.replaceChildren();
    if (!points.length) return;
    const width = Math.max(280, plot.clientWidth), height = Math.min(340, Math.max(240, width * 0.36));
    const box = { left: 52, right: width - 16, top: 26, bottom: height - 40 };
    const x = makeScale(points.map((p) => p.costs[cost]), box.left, box.right, 6);
    const y = makeScale(points.flatMap((p) => p.scores[quality].slice(0, 3)), box.bottom, box.top, 20);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group",
      "aria-label": `${column.score} against ${data.costs[cost]}` }, plot);
    for (const [tick, text] of y.ticks) {
      draw("line", { class: "grid", x1: box.left, x2: box.right, y1: y.scale(tick), y2: y.scale(tick) }, svg);
      draw("text", { x: box.left - 8, y: y.scale(tick) + 4, "text-anchor": "end" }, svg, text);
    }
    for (const [tick, text] of x.ticks) {
      draw("text", { x: x.scale(tick), y: box.bottom + 18, "text-anchor": "middle" }, svg, text);
    }
    draw("text", { x: box.right, y: height - 4, "text-anchor": "end" }, svg, `${data.costs[cost]} →`);
    draw("text", { x: 0, y: 12 }, svg, `${column.score} (${column.lower ? "lower" : "higher"} is better)`);
    const place = new Map(points.map((p) => [p.key, [x.scale(p.costs[cost]), y.scale(p.scores[quality][0])]]));
    const front = column.fronts[cost].filter((key) => place.has(key));
    draw("polyline", { class: "front", points: front.map((key) => place.get(key).join(",")).join(" ") }, svg);
    // No name stands on a point or on the front, or nearer to another one; records that say the same
    // are named once.
    const line = front.slice(1).map((key, i) => [...place.get(front[i]), ...place.get(key)]);
    const places = [...place.values()], named = new Set();
    const taken = places.map(([px, py]) => [px - 6, py - 6, px + 6, py + 6]);
    const order = [...points].sort((a, b) => front.includes(b.key) - front.includes(a.key));
    for (const point of order) drawPoint(svg, point, place.get(point.key), front, { column, quality, cost, y, box, places, taken, named, line, data, figure });
  }

  /* Whether a line from (x1, y1) to (x2, y2) touches a box (left, top, right, bottom). */
  function meets([x1, y1, x2, y2], [left, top, right, bottom]) {
    let start = 0, end = 1;
    for (const [at, by, low, high] of [[x1, x2 - x1, left, right], [y1, y2 - y1, top, bottom]]) {
      if (by === 0) {
        if (at < low || at > high) return false;
        continue;
      }
      const [near, far] = [(low - at) / by, (high - at) / by].sort((a, b) => a - b);
      start = Math.max(start, near); end = Math.min(end, far);
    }
    return start <= end;
  }

  function drawPoint(svg, point, [px, py], front, view) {
    const [value, low, high, text] = point.scores[view.quality];
    const kind = point.published ? "elsewhere" : front.includes(point.key) ? "on-front" : "";
    const link = draw("a", { class: kind, href: `#${point.row}`, "data-row": point.row }, svg);
    const told = `${point.label}${point.sampling ? `, ${point.sampling}` : ""}: ${view.column.score} ${text}, ${short(point.costs[view.cost])} ${view.data.costs[view.cost]}`;
    link.setAttribute("aria-label", told);
    if (low !== high) draw("line", { class: "bar", x1: px, x2: px, y1: view.y.scale(low), y2: view.y.scale(high) }, link);
    draw("circle", { cx: px, cy: py, r: 5 }, link);
    const label = point.label.length > 32 ? `${point.label.slice(0, 31)}…` : point.label;
    const wide = label.length * 6.6, name = `${label} at ${px.toFixed()}, ${py.toFixed()}`;
    for (const [dx, dy, anchor] of [[10, -8, "start"], [10, 18, "start"], [-10, -8, "end"], [-10, 18, "end"]]) {
      const left = px + dx - (anchor === "end" ? wide : 0);
      const area = [left, py + dy - 12, left + wide, py + dy + 3];
      const free = left > view.box.left && left + wide < view.box.right + 14 && area[1] > 14 && area[3] < view.box.bottom + 4 &&
        !view.taken.some((t) => area[0] < t[2] && area[2] > t[0] && area[1] < t[3] && area[3] > t[1]) &&
        !view.line.some((segment) => meets(segment, area)) &&
        !view.places.some(([x, y]) => Math.hypot(px + dx - x, py + dy - 4 - y) < Math.hypot(dx, dy - 4) - 1e-6);
      if (!free || view.named.has(name)) continue;
      view.named.add(name);
      view.taken.push(area);
      draw("text", { class: "name", x: px + dx, y: py + dy, "text-anchor": anchor }, link, label);
      break;
    }
    const hint = view.figure.querySelector(".hint");
    for (const event of ["mouseenter", "focus"]) link.addEventListener(event, () => { hint.textContent = told; });
  }

  for (const figure of all("figure.chart")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const select = figure.querySelector(".quality");
    const usable = Object.keys(data.costs).filter((cost) => data.points.some((p) => p.costs[cost] !== undefined));
    let cost = usable[0];
    data.columns.forEach((column, index) => select.add(new Option(column.score, String(index))));
    const redraw = () => {
      drawChart(figure, data, Number(select.value), cost);
      for (const button of all(".cost button", figure)) button.setAttribute("aria-pressed", String(button.value === cost));
    };
    for (const key of usable) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", value: key, textContent: key === "nfe" ? "NFE" : "seconds" });
      button.addEventListener("click", () => { cost = key; redraw(); });
      figure.querySelector(".cost").append(button);
    }
    select.addEventListener("change", redraw);
    redraw();
    let width = figure.clientWidth;
    new ResizeObserver(() => {
      if (figure.clientWidth && figure.clientWidth !== width) { width = figure.clientWidth; redraw(); }
    }).observe(figure);
  }
  applyFilter();
})();
