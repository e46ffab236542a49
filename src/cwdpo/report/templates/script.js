// Values under the pointer. The page is complete without this.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const text = (v) => {
    const a = Math.abs(v);
    if (v === 0 || Number.isInteger(v)) return String(v).replace("-", "−");
    return (a >= 1000 ? v.toFixed(0) : a < 0.001 ? v.toExponential(1) : v.toPrecision(3)).replace(/-/g, "−");
  };
  const nearest = (points, x) => {
    let best = points[0];
    for (const p of points) if (Math.abs(p[0] - x) < Math.abs(best[0] - x)) best = p;
    return best;
  };
  for (const svg of document.querySelectorAll("svg.chart")) {
    // The browser's own tooltip of the whole drawing would cover ours.
    const title = svg.querySelector(":scope > title");
    if (title) {
      svg.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    if (!svg.dataset.chart) continue;
    const chart = JSON.parse(svg.dataset.chart);
    const [left, right, top, bottom] = chart.box;
    const cursor = document.createElementNS(svg.namespaceURI, "g");
    cursor.setAttribute("class", "cursor");
    svg.append(cursor);
    const steps = [...new Set(chart.series.flatMap((s) => s.p.map((p) => p[0])))].sort((a, b) => a - b);
    let at = -1;
    const px = (x) => left + ((x - chart.x[0]) / (chart.x[1] - chart.x[0])) * (right - left);
    const py = (y) => bottom - ((y - chart.y[0]) / (chart.y[1] - chart.y[0])) * (bottom - top);
    const hide = () => {
      cursor.replaceChildren();
      tip.hidden = true;
    };
    const show = (index) => {
      at = Math.max(0, Math.min(steps.length - 1, index));
      const x = steps[at];
      const line = document.createElementNS(svg.namespaceURI, "line");
      for (const [k, v] of Object.entries({ x1: px(x), x2: px(x), y1: top, y2: bottom })) line.setAttribute(k, v);
      cursor.replaceChildren(line);
      const head = document.createElement("b");
      head.textContent = chart.name + " " + text(x);
      tip.replaceChildren(head);
      const near = chart.series.map((s) => [s, nearest(s.p, x)]).sort((a, b) => b[1][1] - a[1][1]);
      for (const [s, p] of near) {
        const dot = document.createElementNS(svg.namespaceURI, "circle");
        for (const [k, v] of Object.entries({ cx: px(p[0]), cy: py(p[1]), r: 3.4, class: s.c })) dot.setAttribute(k, v);
        cursor.append(dot);
        const row = document.createElement("span");
        row.className = s.c;
        const name = document.createElement("i");
        name.textContent = s.n;
        const span = s.b && s.b.find((b) => b[0] === p[0]);
        row.append(name, text(p[1]) + (span ? " (" + text(span[1]) + " to " + text(span[2]) + ")" : ""));
        tip.append(row);
      }
      tip.hidden = false;
      const frame = svg.getBoundingClientRect();
      const scale = frame.width / svg.viewBox.baseVal.width;
      const width = tip.offsetWidth;
      const edge = document.documentElement.clientWidth;
      let place = frame.left + px(x) * scale + 12;
      if (place + width > edge - 8) place = Math.max(8, frame.left + px(x) * scale - width - 12);
      tip.style.left = place + window.scrollX + "px";
      tip.style.top = frame.top + top * scale + window.scrollY + "px";
    };
    const move = (event) => {
      const frame = svg.getBoundingClientRect();
      const units = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
      if (units < left - 8 || units > right + 8) return hide();
      const x = chart.x[0] + ((units - left) / (right - left)) * (chart.x[1] - chart.x[0]);
      let best = 0;
      steps.forEach((s, i) => {
        if (Math.abs(s - x) < Math.abs(steps[best] - x)) best = i;
      });
      show(best);
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.preventDefault();
      show(at + (event.key === "ArrowRight" ? 1 : -1));
    });
  }
  document.documentElement.dataset.ready = "yes";
})();
