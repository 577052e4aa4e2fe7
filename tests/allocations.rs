//! A request allocates nothing in the steady state. Owns: an allocator that counts, and a client
//! and a server that use each way to send and to receive that is documented not to allocate.
//!
//! One thread drives both engines, and allocations are counted per thread, so that other threads do
//! not count.

use bytes::{Bytes, BytesMut};
use proactor::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

struct Counting;

thread_local! {
    // `const` and without a destructor, so that an allocator may use it.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How many allocations this thread has made.
fn allocations() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call is passed on to the system allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the contract of the system allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller upholds the contract of the system allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONNECTIONS: usize = 40;
const SIZE: usize = 64;

/// How a client sends its request and receives the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// `send` of `Bytes`; the server sends the leases back.
    Send,
    /// `send_tagged`, several at once, so that one batch takes several payloads.
    Tagged,
    /// `write`, small pieces that share a buffer.
    Write,
    /// `recv_into`, with a buffer of the client that is reused.
    RecvInto,
    /// A timer is added and cancelled with each request.
    Timers,
}

struct Pair {
    server: Engine,
    client: Engine,
    out: Completions,
    conns: Vec<ConnId>,
    missing: Vec<usize>,
    buffers: VecDeque<BytesMut>,
    method: Method,
    message: Bytes,
}

impl Pair {
    fn new(backend: Backend, method: Method) -> Option<Pair> {
        let config = Config::default().backend(backend).ignore_environment(true);
        let mut server = Engine::new(config.clone()).ok()?;
        let mut client = Engine::new(config).expect("the first one worked");
        let listener =
            server.listen((Ipv4Addr::LOCALHOST, 0), ListenOptions::default()).expect("listen");
        let addr = server.listener_addr(listener).expect("bound");
        let mut options = ConnectOptions::default();
        // Reads are paused, so that only `recv_into` receives.
        options.socket.read_mode =
            if method == Method::RecvInto { ReadMode::Paused } else { ReadMode::Streaming };
        let conns: Vec<ConnId> = (0..CONNECTIONS)
            .map(|index| {
                let options = ConnectOptions { tag: index as u64, ..options.clone() };
                client.connect(addr.clone(), options).expect("connect")
            })
            .collect();
        let buffers = (0..CONNECTIONS).map(|_| BytesMut::with_capacity(SIZE)).collect();
        let (missing, message) = (vec![0; conns.len()], Bytes::from(vec![7; SIZE]));
        Some(Pair {
            server,
            client,
            out: Completions::with_capacity(256),
            conns,
            missing,
            buffers,
            method,
            message,
        })
    }

    fn send_request(&mut self, index: usize) {
        let (client, conn) = (&mut self.client, self.conns[index]);
        self.missing[index] = SIZE;
        match self.method {
            Method::Send => client.send(conn, self.message.clone()).expect("room"),
            Method::Tagged => {
                self.missing[index] = 3 * SIZE;
                for tag in 0..3 {
                    client.send_tagged(conn, self.message.clone(), tag).expect("room");
                }
            }
            Method::Write => {
                self.message.chunks(8).for_each(|part| client.write(conn, part).expect("room"))
            }
            Method::RecvInto => {
                client.send(conn, self.message.clone()).expect("room");
                let buffer = self.buffers.pop_front().expect("one buffer per connection");
                client.recv_into(conn, buffer, SIZE).expect("none is pending");
            }
            Method::Timers => {
                let id = client.timer_after(Duration::from_secs(60), 0).expect("room");
                assert!(client.timer_cancel(id));
                client.send(conn, self.message.clone()).expect("room");
            }
        }
    }

    /// Setup `count` requests until each has its response.
    fn requests(&mut self, count: usize) {
        let (mut sent, mut answered, start) = (0, 0, Instant::now());
        for index in 0..CONNECTIONS.min(count) {
            self.send_request(index);
            sent += 1;
        }
        while answered < count {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{:?}: {answered} of {count}",
                self.method
            );
            self.server.poll(&mut self.out, Some(Duration::ZERO)).expect("poll");
            while let Some(completion) = self.out.pop() {
                if let Event::Received(data) = completion.event {
                    self.server.send(completion.conn, data).expect("room");
                }
            }
            self.client.poll(&mut self.out, Some(Duration::ZERO)).expect("poll");
            while let Some(completion) = self.out.pop() {
                let index = completion.tag as usize;
                let len = match completion.event {
                    Event::Received(data) => data.len(),
                    Event::Filled(mut buffer) => {
                        let len = buffer.len();
                        buffer.clear();
                        self.buffers.push_back(buffer);
                        len
                    }
                    Event::Closed(reason) => panic!("{reason}"),
                    _ => 0,
                };
                self.missing[index] -= len;
                if len > 0 && self.missing[index] == 0 {
                    answered += 1;
                    if sent < count {
                        sent += 1;
                        self.send_request(index);
                    }
                }
            }
        }
    }
}

fn no_request_allocates(backend: Backend) {
    for method in [Method::Send, Method::Tagged, Method::Write, Method::RecvInto, Method::Timers] {
        let Some(mut pair) = Pair::new(backend, method) else {
            return eprintln!("skipped: no {backend} on this machine");
        };
        // Warm-up, until all queues have reached their size. The second run starts with a request
        // on every connection.
        pair.requests(5_000);
        pair.requests(5_000);
        let before = allocations();
        pair.requests(20_000);
        let allocated = allocations() - before;
        assert_eq!(
            allocated, 0,
            "{backend}, {method:?}: {allocated} allocations in 20,000 requests"
        );
        let heap_copies = pair.server.stats().heap_copies + pair.client.stats().heap_copies;
        assert_eq!(heap_copies, 0, "{backend}, {method:?}");
    }
}

#[test]
fn no_request_allocates_on_uring() {
    no_request_allocates(Backend::Uring);
}

#[test]
fn no_request_allocates_on_epoll() {
    no_request_allocates(Backend::Epoll);
}

/// Without this the tests above could pass with a counter that does not count.
#[test]
fn the_counter_counts() {
    let before = allocations();
    drop(std::hint::black_box(Box::new(1)));
    assert!(allocations() > before);
}
