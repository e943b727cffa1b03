// Figures, times and labels as a person reads them.

const whole = new Intl.NumberFormat('en');
const NOTHING = '–';

const percent = (share) => (share === null || share === undefined ? NOTHING : `${(share * 100).toFixed(1)}%`);
const count = (number) => (number === null || number === undefined ? NOTHING : whole.format(number));
const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

const rate = (perSecond) => {
  if (perSecond === null || perSecond === undefined) return NOTHING;
  return `${perSecond >= 10 || perSecond === 0 ? whole.format(Math.round(perSecond)) : perSecond.toFixed(1)}/s`;
};

const span = (seconds) => {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
};

const clock = (unixSeconds) => new Date(unixSeconds * 1000).toLocaleTimeString('en-GB');

// Year first, so that nobody has to guess which is the month.
const moment = (unixSeconds) => {
  const date = new Date(unixSeconds * 1000);
  if (Number.isNaN(date.getTime())) return NOTHING;
  const two = (number) => String(number).padStart(2, '0');
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${date.toLocaleTimeString('en-GB')}`;
};

// A label is any text: what would not be seen, or would turn the writing around, is shown as an escape.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cs}\p{Cn}]/gu;
const shown = (text) => {
  const visible = String(text).replace(UNSEEN, (each) => `\\u{${each.codePointAt(0).toString(16)}}`);
  return visible.trim() === '' ? `"${visible}"` : visible;
};
