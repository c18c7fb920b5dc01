// check.js URL SERVER_PID: what Node's ws sees of the echo server. Ends by stopping the server.
'use strict';

const assert = require('node:assert/strict');
const { randomBytes } = require('node:crypto');
const { once } = require('node:events');
const { WebSocket } = require('ws');

const MESSAGE_BYTES_MAX = 16 * 1024 * 1024;
const [url, serverPid] = process.argv.slice(2);

async function open({ path = '/', protocols = [], ...options } = {}) {
  // Compression off: the offer is a matter of its own.
  const socket = new WebSocket(url + path, protocols, { perMessageDeflate: false, ...options });
  await once(socket, 'open');
  return socket;
}

async function close(socket, code = 1000, reason = '') {
  const closed = once(socket, 'close');
  socket.close(code, reason);
  const [receivedCode, receivedReason] = await closed;
  return { code: receivedCode, reason: receivedReason.toString() };
}

async function withSocket(options, action) {
  const socket = await open(options);
  try {
    await action(socket);
    assert.equal((await close(socket)).code, 1000);
  } finally {
    socket.terminate();
  }
}

// `message` is a string or a Buffer; what comes back must be of the same kind.
async function expectMessage(socket, message) {
  const [data, isBinary] = await once(socket, 'message');
  assert.equal(isBinary, Buffer.isBuffer(message));
  assert.ok(data.equals(Buffer.from(message)), `${data.length} bytes, but not those that were sent`);
}

async function echoed(socket, message) {
  const received = expectMessage(socket, message);
  socket.send(message);
  await received;
}

const checks = {
  async text() {
    await withSocket({}, async (socket) => {
      for (const message of ['hello', 'Grüße, Привет, 你好, 🦀🌊', '\0', 'x'.repeat(126), 'ß'.repeat(32768)]) {
        await echoed(socket, message);
      }
    });
  },

  async binary() {
    await withSocket({}, async (socket) => {
      for (const length of [1, 125, 126, 127, 4096, 65535, 65536, 300_000]) {
        await echoed(socket, randomBytes(length));
      }
    });
  },

  async 'empty message'() {
    await withSocket({}, async (socket) => {
      await echoed(socket, '');
      await echoed(socket, Buffer.alloc(0));
      await echoed(socket, 'after');
    });
  },

  async 'fragmented message, ping between'() {
    await withSocket({}, async (socket) => {
      const received = expectMessage(socket, 'Grüße, 🦀');
      const ponged = once(socket, 'pong');
      const bytes = Buffer.from('Grüße, 🦀');
      // The border lies within a character.
      socket.send(bytes.subarray(0, 3), { fin: false, binary: false });
      socket.ping('between');
      socket.send('', { fin: false });
      socket.send(bytes.subarray(3), { fin: true });
      assert.equal((await ponged)[0].toString(), 'between');
      await received;

      const pieces = [randomBytes(1), randomBytes(70_000), randomBytes(125)];
      const whole = expectMessage(socket, Buffer.concat(pieces));
      pieces.forEach((piece, index) => socket.send(piece, { fin: index === pieces.length - 1 }));
      await whole;
    });
  },

  async 'ping and pong'() {
    await withSocket({}, async (socket) => {
      for (const payload of [Buffer.alloc(0), Buffer.from('payload'), randomBytes(125)]) {
        const ponged = once(socket, 'pong');
        socket.ping(payload);
        assert.ok((await ponged)[0].equals(payload));
      }
      socket.pong('unsolicited');
      await echoed(socket, 'after');
    });
  },

  async 'many in flight'() {
    await withSocket({}, async (socket) => {
      const count = 1000;
      let next = 0;
      const done = new Promise((resolve, reject) => {
        socket.on('message', (data) => {
          if (data.toString() !== `message ${next}`.repeat(next % 50)) reject(new Error(`message ${next}`));
          next += 1;
          if (next === count) resolve();
        });
        socket.on('close', () => reject(new Error(`closed after ${next}`)));
      });
      for (let number = 0; number < count; number += 1) socket.send(`message ${number}`.repeat(number % 50));
      await done;
    });
  },

  async 'largest message'() {
    await withSocket({ maxPayload: MESSAGE_BYTES_MAX }, async (socket) => {
      await echoed(socket, randomBytes(MESSAGE_BYTES_MAX));
      await echoed(socket, '🦀'.repeat(MESSAGE_BYTES_MAX / 4));
    });
  },

  async 'close code'() {
    const closes = [[1000, ''], [1000, 'done'], [3000, 'registered'], [4999, 'grün'.repeat(24)]];
    for (const [code, reason] of closes) {
      const socket = await open();
      const received = await close(socket, code, reason);
      assert.equal(received.code, code);
      // RFC 6455 section 5.5.1: the code is echoed; the reason need not be.
      assert.ok(['', reason].includes(received.reason), received.reason);
    }
  },

  async subprotocol() {
    for (const [protocols, selected] of [[[], ''], [['echo'], 'echo'], [['chat', 'echo'], 'echo']]) {
      await withSocket({ protocols }, async (socket) => {
        assert.equal(socket.protocol, selected);
        await echoed(socket, 'hello');
      });
    }
    // ws fails a handshake in which none of its offers is selected; the server must not make one up.
    await assert.rejects(open({ protocols: ['chat'] }), /Server sent no subprotocol/);
  },

  async rejection() {
    const socket = new WebSocket(`${url}/reject`);
    socket.on('error', () => {});
    const [, response] = await once(socket, 'unexpected-response');
    assert.equal(response.statusCode, 403);
    let body = '';
    for await (const chunk of response) body += chunk;
    assert.notEqual(body, '');
  },

  async 'deferred accept'() {
    const later = Array.from({ length: 20 }, (_, number) =>
      withSocket({ path: '/later' }, (socket) => echoed(socket, `late ${number}`)));
    await Promise.all(later);
  },

  async 'compression offer'() {
    await withSocket({ perMessageDeflate: true }, (socket) => echoed(socket, 'compressible '.repeat(1000)));
  },

  async 'going away'() {
    const sockets = [await open(), await open()];
    await echoed(sockets[0], 'before');
    const closed = sockets.map((socket) => once(socket, 'close'));
    process.kill(Number(serverPid), 'SIGTERM');
    for (const [code] of await Promise.all(closed)) assert.equal(code, 1001);
  },
};

async function main() {
  let failed = 0;
  for (const [name, check] of Object.entries(checks)) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(reject, 60_000, new Error('not done within 60 s'));
    });
    try {
      await Promise.race([check(), late]);
      console.log(`ok   ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${name}: ${error.message}`);
    } finally {
      clearTimeout(timer);
    }
  }
  process.exit(failed === 0 ? 0 : 1);
}

main();
