// Asks an address again and again: rarely while nobody looks, more and more rarely while nobody answers.

const LONGEST_SECONDS = 60;
const HIDDEN_SECONDS = 60;
const ANSWER_SECONDS = 20;
// A large history is not asked for all the time: its transfer may take so much of it.
const REST_FACTOR = 10;

const makePoller = ({ url, seconds, taken, lost }) => {
  let timer = null;
  let failures = 0;
  let etag = null;
  let isAsking = false;

  const wait = (delay) => {
    clearTimeout(timer);
    timer = setTimeout(ask, delay * 1000);
  };

  const ask = async () => {
    if (isAsking) return;
    isAsking = true;
    const began = performance.now();
    const giveUp = new AbortController();
    const deadline = setTimeout(() => giveUp.abort(), ANSWER_SECONDS * 1000);
    try {
      const answer = await fetch(url, {
        cache: 'no-store', credentials: 'same-origin', signal: giveUp.signal,
        headers: etag === null ? {} : { 'If-None-Match': etag },
      });
      if (answer.status !== 304 && !answer.ok) throw new Error(`${url} answers ${answer.status}`);
      const said = answer.status === 304 ? null : await answer.json();
      failures = 0;
      taken(said); // null: as before
      if (said !== null) etag = answer.headers.get('ETag'); // of what is shown
      const took = (performance.now() - began) / 1000;
      wait(document.hidden ? HIDDEN_SECONDS : Math.max(seconds, took * REST_FACTOR));
    } catch (error) {
      failures += 1;
      const delay = Math.min(LONGEST_SECONDS, seconds * 2 ** Math.min(failures, 10));
      wait(delay);
      lost(error);
    } finally {
      clearTimeout(deadline);
      isAsking = false;
    }
  };

  document.addEventListener('visibilitychange', () => { if (!document.hidden) ask(); });
  window.addEventListener('online', ask);
  ask();
};
