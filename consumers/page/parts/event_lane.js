// Events over the time axis, a lane a kind; those that would cover each other are one mark.

const LANES = [
  { name: 'new classes', mark: 'class', kinds: ['new_class'] },
  { name: 'drift', mark: 'warn', kinds: ['drift'] },
  { name: 'jobs', mark: 'job', kinds: ['restructuring_requested', 'adopted', 'offer_refused', 'restructuring_refused'] },
  { name: 'versions', mark: 'version', kinds: ['version_registered', 'promoted', 'promotion_refused'] },
  { name: 'log and state', mark: 'log', kinds: null }, // all others
];
const LANE_HEIGHT = 18;
const MARK_WIDTH = 9;

const laneOf = (kind) => LANES.find((lane) => lane.kinds === null || lane.kinds.includes(kind));

// Forms as well as colours: a ring, a triangle, a diamond, a square, a cross.
const markAt = (mark, x, y) => {
  const forms = {
    class: () => shape('circle', { class: 'mark', cx: x, cy: y, r: 3.6 }),
    warn: () => shape('path', { class: 'mark warn', d: `M${x} ${y - 4.5}l4.5 8h-9z` }),
    job: () => shape('path', { class: 'mark job', d: `M${x} ${y - 5}l5 5l-5 5l-5-5z` }),
    version: () => shape('rect', { class: 'mark version', x: x - 3.5, y: y - 3.5, width: 7, height: 7 }),
    log: () => shape('path', { class: 'mark', d: `M${x - 4} ${y - 4}l8 8m0-8l-8 8` }),
  };
  return forms[mark]();
};

const glyphOf = (kind) => {
  const svg = shape('svg', { viewBox: '0 0 14 14', class: 'glyph', 'aria-hidden': 'true', focusable: 'false' });
  svg.append(markAt(laneOf(kind).mark, 7, 7));
  return svg;
};

const drawLane = (place, labels, axis, events) => {
  const lanes = LANES.filter((lane) => events.some((event) => laneOf(event.kind) === lane));
  const svg = svgOf(axis.width, Math.max(1, LANE_HEIGHT * lanes.length));
  lanes.forEach((lane, row) => {
    const y = row * LANE_HEIGHT + LANE_HEIGHT / 2;
    svg.append(shape('path', { class: 'grid', d: `M0 ${y}H${axis.width}` }));
    const taken = new Map(); // a mark's place -> what happened there
    for (const event of events) {
      if (event.near === null || laneOf(event.kind) !== lane) continue;
      const slot = Math.round(axis.x(event.near) / MARK_WIDTH);
      taken.set(slot, [...(taken.get(slot) ?? []).slice(-5), event]);
    }
    for (const [, there] of taken) {
      const x = Math.max(5, Math.min(axis.width - 5, axis.x(there[there.length - 1].near)));
      const mark = markAt(lane.mark, x, y);
      mark.append(shape('title', {}, there.map((event) => shown(event.text)).join('\n')));
      svg.append(mark);
    }
  });
  const line = element('div', { class: 'moment', hidden: true });
  place.replaceChildren(svg, line);
  labels.replaceChildren(...lanes.map((lane) => {
    const label = element('div', {}, lane.name);
    label.style.height = `${LANE_HEIGHT}px`;
    label.style.lineHeight = `${LANE_HEIGHT}px`;
    return label;
  }));
};
