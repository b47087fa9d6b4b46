for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
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
