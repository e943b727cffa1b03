// Classes against time, the accuracy as a colour; a canvas, so that forty thousand cells cost no more than one.

const rowHeightOf = (rows) => (rows <= 12 ? 26 : rows <= 24 ? 20 : 15);

const drawCells = (canvas, axis, classes) => {
  const height = rowHeightOf(classes.length);
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(axis.width * scale));
  canvas.height = Math.max(1, Math.round(height * classes.length * scale));
  canvas.style.height = `${height * classes.length}px`;
  const context = canvas.getContext('2d', { alpha: true });
  const edges = axis.edges.map((edge) => Math.round(edge * scale));
  const gap = Math.max(1, Math.round(scale));
  classes.forEach((each, row) => {
    const top = Math.round(row * height * scale);
    const bottom = Math.round((row + 1) * height * scale) - gap;
    for (let column = 0; column < axis.at.length; column += 1) {
      const share = accuracyAt(each, column);
      if (share === null) continue;
      context.fillStyle = colourOf(share);
      context.fillRect(edges[column], top, Math.max(1, edges[column + 1] - edges[column]), bottom - top);
    }
  });
};

const drawRowLabels = (names, ends, classes) => {
  const height = rowHeightOf(classes.length);
  const line = (...children) => {
    const made = element('div', {}, ...children);
    made.style.height = `${height}px`;
    made.style.lineHeight = `${height - 1}px`;
    return made;
  };
  names.replaceChildren(...classes.map((each) => line(element('bdi', { title: shown(each.name) }, shown(each.name)))));
  ends.replaceChildren(...classes.map((each) => line(percent(each.accuracy))));
};
