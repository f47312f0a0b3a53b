// Values under the pointer, or under a cursor that the arrow keys move. The page is complete without.
"use strict";
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector(".plot > svg");
  const all = JSON.parse(figure.querySelector("script").textContent);
  const readout = figure.querySelector(".readout");
  const cursor = svg.querySelector(".cursor");
  const number = (v) => v === null ? "not finite" : v === 0 ? "0"
    : Math.abs(v) < 1e-3 || Math.abs(v) >= 1e9 ? v.toExponential(2) : String(Number(v.toPrecision(5)));
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (low < high) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid + 1; else high = mid; }
    return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
  };
  const percent = (part) => `${(100 * part).toFixed(3)}%`;
  const xs = all.kind === "lines" ? [...new Set(all.lines.flatMap((l) => l.x))].sort((a, b) => a - b) : [];
  let at = null, row = 0;

  const showLines = () => {
    const x = xs[at];
    const place = percent((x - all.low) / (all.high - all.low));
    cursor.setAttribute("x1", place); cursor.setAttribute("x2", place);
    const values = all.lines.filter((l) => l.x.length).map((l) => {
      const i = nearest(l.x, x);
      return `${l.name} ${number(l.y[i])}${l.x[i] === x ? "" : ` (${all.x} ${number(l.x[i])})`}`;
    });
    readout.textContent = `${all.x} ${number(x)} · ${values.join(" · ")}`;
  };
  const showCell = () => {
    const rows = all.rows.length, columns = all.spans.length, v = all.values[row][at];
    const [first, last] = all.spans[at];
    cursor.setAttribute("x", percent(at / columns)); cursor.setAttribute("y", percent(row / rows));
    cursor.style.width = percent(1 / columns); cursor.style.height = percent(1 / rows);
    const steps = first === last ? `step ${first}` : `steps ${first} to ${last}`;
    readout.textContent = `${all.rows[row]} · ${steps} · ${all.name} ${v === null ? "not measured" : number(v)}`;
  };
  const count = all.kind === "lines" ? xs.length : all.spans.length;
  if (!count) continue;
  const show = () => { figure.classList.add("on"); if (all.kind === "lines") showLines(); else showCell(); };
  const hide = () => { figure.classList.remove("on"); readout.textContent = "\u00a0"; };
  const clamp = (v, most) => Math.max(0, Math.min(most, v));

  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const part = (event.clientX - box.left) / box.width;
    if (all.kind === "lines") at = nearest(xs, all.low + part * (all.high - all.low));
    else {
      at = clamp(Math.floor(part * count), count - 1);
      row = clamp(Math.floor((event.clientY - box.top) / box.height * all.rows.length), all.rows.length - 1);
    }
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") return hide();
    if (by === undefined && (down === undefined || all.kind === "lines")) return;
    event.preventDefault();
    if (by !== undefined) at = at !== null ? clamp(at + by, count - 1) : by === -1 || by === Infinity ? count - 1 : 0;
    else { row = clamp(row + down, all.rows.length - 1); at = at ?? 0; }
    show();
  });
}
