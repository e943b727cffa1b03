// A curve of averages, this learner's and the baseline's, from 0 to 100 %.

const CURVE_HEIGHT = 112;

const pathOf = (axis, at, shares) => {
  let path = '';
  let pen = 'M';
  at.forEach((records, place) => {
    const share = shares[place];
    if (share === null) { pen = 'M'; return; }
    path += `${pen}${axis.x(records).toFixed(1)} ${((1 - share) * CURVE_HEIGHT).toFixed(1)}`;
    pen = 'L';
  });
  return path;
};

// Labels at the ends of the curves, moved apart where they would cover each other.
const drawEnds = (place, entries) => {
  const known = entries.filter((each) => each.share !== null).sort((a, b) => b.share - a.share);
  let free = 0;
  place.replaceChildren(...known.map(({ name, share }) => {
    const top = Math.max(free, Math.min(CURVE_HEIGHT - 12 * known.length, (1 - share) * CURVE_HEIGHT - 6));
    free = top + 14;
    const label = element('span', { class: name }, percent(share));
    label.style.top = `${top}px`;
    return label;
  }));
};

const lastOf = (shares) => (shares.length ? shares[shares.length - 1] : null);

// `one`: the course of a single class besides, with the same columns as `history.course`; null: none.
const drawCurve = (place, ends, axis, history, name, one) => {
  const svg = svgOf(axis.width, CURVE_HEIGHT);
  for (const share of [0, 0.5, 1]) {
    const y = Math.round((1 - share) * CURVE_HEIGHT) + (share === 0 ? -0.5 : 0.5);
    svg.append(shape('path', { class: share === 0 ? 'base' : 'grid', d: `M0 ${y}H${axis.width}` }),
      shape('text', { x: 0, y: y + (share === 0 ? -4 : 12) }, `${share * 100}%`));
  }
  const baseline = history.baseline && history.baseline.course;
  if (baseline) svg.append(shape('path', { class: 'other', d: pathOf(axis, baseline.at, baseline[name]) }));
  svg.append(shape('path', { class: 'own', d: pathOf(axis, axis.at, history.course[name]) }));
  if (one) svg.append(shape('path', { class: 'one', d: pathOf(axis, axis.at, one) }));
  const line = element('div', { class: 'moment', hidden: true });
  place.replaceChildren(svg, line);
  drawEnds(ends, [{ name: 'own', share: lastOf(history.course[name]) },
    { name: 'other', share: baseline ? lastOf(baseline[name]) : null }]);
};
