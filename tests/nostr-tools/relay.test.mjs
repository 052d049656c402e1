// The relay as nostr-tools sees it. RHEOSTR_BINARY names the program; RHEOSTR_CORPUS, or
// ../shared/corpus beside the repository, holds real events.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { createInterface } from 'node:readline'
import { finalizeEvent, generateSecretKey, getPublicKey, verifyEvent } from 'nostr-tools/pure'
import { Relay, useWebSocketImplementation } from 'nostr-tools/relay'
import { SimplePool, useWebSocketImplementation as usePoolWebSocket } from 'nostr-tools/pool'
import { fetchRelayInformation } from 'nostr-tools/nip11'
import WebSocket from 'ws'

useWebSocketImplementation(WebSocket)
usePoolWebSocket(WebSocket)

const TIMEOUT_MS = 60_000
const directory = mkdtempSync(join(tmpdir(), 'rheostr-tools-'))
const secret = generateSecretKey()
const pubkey = getPublicKey(secret)
const now = () => Math.floor(Date.now() / 1000)
const sign = (template) => finalizeEvent({ created_at: now(), tags: [], content: '', ...template }, secret)
let child
let url
process.on('exit', () => child?.kill('SIGKILL'))

before(async () => {
  child = spawn(process.env.RHEOSTR_BINARY, [
    'relay', '--listen', '127.0.0.1:0', '--shards', '2', '--data', join(directory, 'data'),
    '--set', 'admin.listen=', '--set', 'limits.event_tags_max=2000',
  ], { stdio: ['ignore', 'pipe', 'inherit'] })
  for await (const line of createInterface({ input: child.stdout })) {
    url = line.match(/^rheostr ready (ws:\/\/\S+)/)[1]
    break
  }
}, { timeout: TIMEOUT_MS })

after(async () => {
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGTERM')
  assert.equal(await ended, 0, 'SIGTERM ends the relay well')
  rmSync(directory, { recursive: true })
}, { timeout: TIMEOUT_MS })

// What a subscription brings up to EOSE; it stays open, live events go to `live`.
function subscribe(relay, filters, live = () => {}) {
  return new Promise((resolve, reject) => {
    const stored = []
    let done = false
    const subscription = relay.subscribe(filters, {
      onevent: (event) => (done ? live(event) : stored.push(event)),
      oneose: () => { done = true; resolve({ stored, subscription }) },
      onclose: (reason) => { if (!done) reject(new Error(reason)) },
    })
  })
}

// A promise and how to keep it.
function later() {
  let keep
  return { promise: new Promise((resolve) => { keep = resolve }), keep }
}

const essence = ({ id, pubkey, created_at, kind, tags, content, sig }) =>
  ({ id, pubkey, created_at, kind, tags, content, sig })

test('publish, query, live delivery', { timeout: TIMEOUT_MS }, async () => {
  const [writer, reader] = await Promise.all([Relay.connect(url), Relay.connect(url)])
  const first = sign({ kind: 1, content: 'stored \u{1f600} "\\\n', tags: [['t', 'tools']] })
  assert.equal(await writer.publish(first), '')
  const heard = later()
  const { stored, subscription } = await subscribe(reader, [{ authors: [pubkey], kinds: [1] }], heard.keep)
  assert.deepEqual(stored.map(essence), [essence(first)])
  assert.ok(verifyEvent(stored[0]))
  const second = sign({ kind: 1, content: 'live', created_at: now() + 1 })
  await writer.publish(second)
  assert.deepEqual(essence(await heard.promise), essence(second))
  subscription.close()
  const again = await writer.publish(first)
  assert.match(again, /^duplicate: /)
  const forged = { ...second, content: 'forged' }
  await assert.rejects(writer.publish(forged), /invalid: /)
  writer.close()
  reader.close()
})

test('replaceable, addressable, deletion, ephemeral', { timeout: TIMEOUT_MS }, async () => {
  const relay = await Relay.connect(url)
  const profile = (at) => sign({ kind: 0, created_at: at, content: `{"name":"${at}"}` })
  await relay.publish(profile(now() - 10))
  const newest = profile(now() - 5)
  await relay.publish(newest)
  await assert.rejects(relay.publish(profile(now() - 8)), /duplicate: a newer version/)
  const found = await subscribe(relay, [{ kinds: [0], authors: [pubkey] }])
  assert.deepEqual(found.stored.map((event) => event.id), [newest.id])
  const article = sign({ kind: 30023, tags: [['d', 'x:y']], content: 'text' })
  await relay.publish(article)
  await relay.publish(sign({ kind: 5, tags: [['a', `30023:${pubkey}:x:y`]] }))
  const gone = await subscribe(relay, [{ kinds: [30023], '#d': ['x:y'] }])
  assert.deepEqual(gone.stored, [])
  await assert.rejects(relay.publish(sign({ kind: 20001 })), /mute: /)
  const heard = later()
  await subscribe(relay, [{ kinds: [20002] }], heard.keep)
  const ephemeral = sign({ kind: 20002, content: 'psst' })
  await relay.publish(ephemeral)
  assert.equal((await heard.promise).id, ephemeral.id)
  relay.close()
})

test('a pool with several subscriptions', { timeout: TIMEOUT_MS }, async () => {
  const pool = new SimplePool()
  const events = Array.from({ length: 20 }, (_, n) =>
    sign({ kind: 7777, created_at: now() - n, content: String(n), tags: [['t', `t${n % 3}`]] }))
  for (const event of events) await Promise.all(pool.publish([url], event))
  const byTag = await pool.querySync([url], { kinds: [7777], '#t': ['t0'] })
  assert.equal(byTag.length, 7)
  const limited = await pool.querySync([url], { kinds: [7777], limit: 5 })
  assert.deepEqual(limited.map((event) => event.content), ['0', '1', '2', '3', '4'])
  const one = await pool.get([url], { ids: [events[9].id] })
  assert.equal(one.content, '9')
  pool.close([url])
})

test('the relay information document', { timeout: TIMEOUT_MS }, async () => {
  const information = await fetchRelayInformation(url)
  assert.ok(information.supported_nips.includes(1))
  assert.equal(information.limitation.max_event_tags, 2000)
  assert.equal(information.limitation.max_subid_length, 64)
})

test('real events', { timeout: 5 * TIMEOUT_MS }, async (t) => {
  const path = process.env.RHEOSTR_CORPUS ?? new URL('../../../shared/corpus/real-events.jsonl', import.meta.url).pathname
  if (!existsSync(path)) return t.skip(`the corpus is not at ${path}`)
  const events = readFileSync(path, 'utf8').trim().split('\n').map((line) => JSON.parse(line))
  const relay = await Relay.connect(url)
  relay.publishTimeout = 4 * TIMEOUT_MS
  const texts = { accepted: 0 }
  for (let at = 0; at < events.length; at += 200) {
    await Promise.all(events.slice(at, at + 200).map((event) => relay.publish(event).then(
      () => { texts.accepted += 1 },
      (error) => { const prefix = error.message.split(':')[0]; texts[prefix] = (texts[prefix] ?? 0) + 1 },
    )))
  }
  assert.equal(Object.values(texts).reduce((a, b) => a + b), events.length, 'every event has its OK')
  assert.equal(texts.invalid, 24, 'the expired ones')
  assert.deepEqual(Object.keys(texts).sort().filter((key) => !['accepted', 'blocked'].includes(key)), ['duplicate', 'invalid'])
  t.diagnostic(JSON.stringify(texts))
  const articles = events.filter((event) => event.kind === 1063).sort((a, b) =>
    b.created_at - a.created_at || (a.id < b.id ? -1 : 1))
  const { stored } = await subscribe(relay, [{ kinds: [1063] }])
  assert.deepEqual(stored.map(essence), articles.map(essence))
  relay.close()
})
