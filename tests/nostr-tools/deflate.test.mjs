// permessage-deflate with `ws`, whose compression nobody here wrote: the same events compressed and
// not, in both directions. RHEOSTR_BINARY names the program.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { createInterface } from 'node:readline'
import { finalizeEvent, generateSecretKey } from 'nostr-tools/pure'
import WebSocket from 'ws'

const TIMEOUT_MS = 60_000
const EVENTS = 200

async function relay(deflate) {
  const directory = mkdtempSync(join(tmpdir(), 'rheostr-deflate-'))
  const child = spawn(process.env.RHEOSTR_BINARY, [
    'relay', '--listen', '127.0.0.1:0', '--shards', '2', '--data', join(directory, 'data'),
    '--set', 'admin.listen=', '--set', `deflate=${deflate}`,
  ], { stdio: ['ignore', 'pipe', 'inherit'] })
  const kill = () => child.kill('SIGKILL')
  process.on('exit', kill)
  let url
  for await (const line of createInterface({ input: child.stdout })) {
    url = line.match(/^rheostr ready (ws:\/\/\S+)/)[1]
    break
  }
  const stop = async () => {
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGTERM')
    assert.equal(await ended, 0, 'SIGTERM ends the relay well')
    process.off('exit', kill)
    rmSync(directory, { recursive: true })
  }
  return { url, stop }
}

// A connection, its messages in order, and the bytes they took on the wire.
async function connect(url, perMessageDeflate) {
  const socket = new WebSocket(url, { perMessageDeflate })
  const client = { socket, messages: [], waiting: [] }
  socket.on('message', (data) => {
    client.messages.push(JSON.parse(data))
    client.waiting = client.waiting.filter((check) => !check())
  })
  client.until = (what) => new Promise((resolve) => {
    const check = () => what(client.messages) && (resolve(), true)
    if (!check()) client.waiting.push(check)
  })
  client.say = (...message) => socket.send(JSON.stringify(message))
  client.bytes = () => socket._socket.bytesRead
  await new Promise((resolve, reject) => { socket.once('open', resolve); socket.once('error', reject) })
  return client
}

const events = (client, id) => client.messages.filter((m) => m[0] === 'EVENT' && m[1] === id).map((m) => m[2])
// Without what nostr-tools notes in an event.
const plainly = (event) => JSON.parse(JSON.stringify(event))
const has = (...start) => (messages) =>
  messages.some((message) => start.every((part, at) => message[at] === part))

for (const deflate of ['on', 'client-context']) {
  test(`deflate = ${deflate}: compressed and plain subscribers see the same`, { timeout: TIMEOUT_MS }, async () => {
    const { url, stop } = await relay(deflate)
    const clients = {
      plain: await connect(url, false),
      whole: await connect(url, { threshold: 0 }),
      alone: await connect(url, { threshold: 0, clientNoContextTakeover: true, serverNoContextTakeover: true }),
      small: await connect(url, { threshold: 0, serverMaxWindowBits: 9, clientMaxWindowBits: 9 }),
    }
    for (const [name, { socket }] of Object.entries(clients)) {
      assert.equal(socket.extensions, name === 'plain' ? '' : 'permessage-deflate', name)
    }
    const all = Object.values(clients)
    for (const client of all) {
      client.say('REQ', 'live', { kinds: [1], limit: 0 })
      await client.until(has('EOSE', 'live'))
    }
    const before = all.map((client) => client.bytes())
    const secret = generateSecretKey()
    const now = Math.floor(Date.now() / 1000)
    const sent = Array.from({ length: EVENTS }, (_, n) => plainly(finalizeEvent({
      kind: 1, created_at: now - n, tags: [['t', 'deflate'], ['n', `${n}`]],
      content: `number ${n}: ${'gr\u{fc}\u{df}e \u{1f600} an alle, '.repeat(n % 40)}`,
    }, secret)))
    // Each client publishes a share, so compressed messages come in too.
    sent.forEach((event, n) => all[n % all.length].say('EVENT', event))
    for (const client of all) {
      await client.until(() => events(client, 'live').length === EVENTS)
      assert.deepEqual(events(client, 'live'), events(all[0], 'live'), 'one order for all')
      const oks = client.messages.filter((m) => m[0] === 'OK')
      assert.deepEqual(oks.map((m) => m[2]), oks.map(() => true))
    }
    const newestFirst = events(all[0], 'live').sort((a, b) => b.created_at - a.created_at)
    assert.deepEqual(newestFirst, sent)
    const [plain, ...compressed] = all.map((client, at) => client.bytes() - before[at])
    for (const bytes of compressed) assert.ok(bytes < 0.8 * plain, `${bytes} of ${plain} bytes`)

    for (const client of all) {
      client.say('REQ', 'stored', { kinds: [1] })
      await client.until(has('EOSE', 'stored'))
      assert.deepEqual(events(client, 'stored'), sent, 'newest first')
    }
    for (const client of all) client.socket.terminate()
    await stop()
  })
}
