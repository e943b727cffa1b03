// From records consumed to pixels, for all that stands above each other.

const timeAxis = (history, width) => {
  const at = columnsOf(history);
  const course = history.baseline && history.baseline.course;
  const last = Math.max(1, history.records || 0, at.length ? at[at.length - 1] : 0,
    course && course.at.length ? course.at[course.at.length - 1] : 0);
  const x = (records) => (Math.min(records, last) / last) * width;
  // A column reaches half way to its neighbours.
  const edges = at.map((records, place) => x(place === 0 ? Math.max(0, records - ((at[1] ?? records) - records) / 2)
    : (records + at[place - 1]) / 2));
  edges.push(at.length ? x(at.length > 1 ? Math.min(last, at[at.length - 1] + (at[at.length - 1] - at[at.length - 2]) / 2) : last) : 0);
  const columnAt = (pixels) => {
    const place = lastUpTo(edges, pixels);
    return at.length === 0 ? -1 : Math.max(0, Math.min(at.length - 1, place));
  };
  return { width, last, x, edges, at, columnAt };
};

// Round numbers, as many as there is room for.
const ticksOf = (axis) => {
  const most = Math.max(1, Math.floor(axis.width / 80));
  const rough = axis.last / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough));
  const ticks = [];
  for (let records = 0; records <= axis.last; records += step) ticks.push(records);
  return ticks;
};

const short = (records) => {
  if (records >= 1e6) return `${+(records / 1e6).toPrecision(3)} M`;
  return records >= 1e4 ? `${+(records / 1e3).toPrecision(3)} k` : whole.format(records);
};

const drawAxis = (place, axis) => {
  const svg = svgOf(axis.width, 30);
  for (const records of ticksOf(axis)) {
    const x = Math.round(axis.x(records)) + 0.5;
    const anchor = x < 20 ? 'start' : x > axis.width - 20 ? 'end' : 'middle';
    svg.append(shape('path', { class: 'base', d: `M${x} 0V5` }),
      shape('text', { x, y: 16, 'text-anchor': anchor }, short(records)));
  }
  svg.append(shape('text', { x: axis.width, y: 28, 'text-anchor': 'end' }, 'records learnt from'));
  place.replaceChildren(svg);
};
