for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    const key = (row) => {
      const cell = row.cells[column], text = cell.textContent.trim();
      const shown = /^[+−-]?[\d,]+(\.\d+)?(?=$| \[)/.exec(text);
      if (cell.dataset.v !== undefined || !shown) return cell.dataset.v ?? (text === "–" ? "-1e12" : text);
      return shown[0].replaceAll(",", "").replace("−", "-");
    };
    const sort = () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].filter((row) => !row.classList.contains("total"));
      const total = [...body.rows].filter((row) => row.classList.contains("total"));
      const numeric = rows.every((row) => !Number.isNaN(Number(key(row))));
      rows.sort((x, y) => (numeric ? Number(key(x)) - Number(key(y)) : key(y).localeCompare(key(x))));
      body.append(...(down ? rows.reverse() : rows), ...total);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" || event.key === " " ? (event.preventDefault(), sort()) : undefined);
  });
}
for (const box of document.querySelectorAll(".scroll")) {
  const mark = () => box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 8);
  box.addEventListener("scroll", mark);
  addEventListener("resize", mark);
  mark();
}
for (const name of document.querySelectorAll("td.task span, .multiples figcaption")) {
  name.addEventListener("mouseenter", () => { name.title = name.textContent; });
}
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const svg of document.querySelectorAll("svg.hover")) {
  const [left, top, right, bottom] = svg.dataset.box.split(" ").map(Number);
  const [x0, x1, y0, y1] = svg.dataset.axes.split(" ").map(Number);
  const series = [...svg.querySelectorAll("polyline[data-title]")].map((line) => ({
    title: line.dataset.title,
    points: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
  }));
  const cross = document.createElementNS(svg.namespaceURI, "line");
  cross.setAttribute("class", "cross");
  const value = (y) => {
    const part = (bottom - y) / (bottom - top);
    const number = svg.dataset.log ? Math.exp(Math.log(y0) + part * Math.log(y1 / y0)) : y0 + part * (y1 - y0);
    return svg.dataset.format === "percent" ? `${(100 * number).toPrecision(4)} %` : number.toPrecision(4);
  };
  svg.addEventListener("mousemove", (event) => {
    const place = svg.getBoundingClientRect();
    const x = ((event.clientX - place.left) / place.width) * svg.viewBox.baseVal.width;
    if (left > x || x > right || !series.length) return;
    const nearest = (points) => points.reduce((best, p) => (Math.abs(best[0] - x) > Math.abs(p[0] - x) ? p : best));
    const at = nearest(series[0].points)[0];
    const step = Math.round(x0 + ((at - left) / (right - left)) * (x1 - x0));
    for (const [key, number] of [["x1", at], ["x2", at], ["y1", top], ["y2", bottom]]) cross.setAttribute(key, number);
    svg.append(cross);
    tip.replaceChildren(`step ${step}`, ...series.flatMap((s) => [document.createElement("br"), `${s.title} ${value(nearest(s.points)[1])}`]));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - 170)}px`;
    tip.style.top = `${event.clientY + 14}px`;
    tip.hidden = false;
  });
  svg.addEventListener("mouseleave", () => { tip.hidden = true; cross.remove(); });
}
for (const field of document.querySelectorAll("input.find")) {
  const rows = [...document.querySelectorAll(field.dataset.rows)];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
}
