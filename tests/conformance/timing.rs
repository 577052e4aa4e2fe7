//! Timeouts, timers, wake-ups, and the descriptor of the engine in another event loop.

use crate::Variant;
use crate::peers::*;
use crate::rig::*;
use proactor::*;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub fn poll_times_out(variant: &Variant) {
    let mut rig = Rig::new(variant);
    for span in [Duration::ZERO, Duration::from_micros(300), Duration::from_millis(20)] {
        let start = now();
        assert_eq!(rig.engine.poll(&mut rig.completions, Some(span)).unwrap(), 0);
        assert!(since(start) >= span, "{:?} instead of {span:?}", since(start));
    }
    let _connected = rig.pair();
    assert_eq!(rig.engine.poll(&mut rig.completions, Some(Duration::from_millis(5))).unwrap(), 0);
}

fn fired(list: Vec<Completion>) -> Vec<u64> {
    list.into_iter()
        .map(|completion| match completion.event {
            Event::Timer { .. } => completion.tag,
            other => panic!("{other:?}"),
        })
        .collect()
}

pub fn long_waits_leave_nothing_behind(variant: &Variant) {
    // Polls with timeouts of days, each ended by data at once. The deadlines come nearer, then move
    // away. Their timeouts must not keep the ring alive: the suite counts descriptors afterwards.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    for round in 0..200u64 {
        peer.write_all(b"x").unwrap();
        let hours = if round < 100 { 200 - round } else { round };
        rig.engine.poll(&mut rig.completions, Some(Duration::from_secs(hours * 3600))).unwrap();
        let event = rig.completions.pop().map(|completion| (completion.conn, completion.event));
        let Some((from, Event::Received(data))) = event else { panic!("{event:?}") };
        assert_eq!((from, &data[..]), (conn, &b"x"[..]));
    }
    // A short timeout after long ones is kept.
    let start = now();
    assert!(rig.poll(Duration::from_millis(20)).is_empty());
    assert!(since(start) >= Duration::from_millis(20));
}

pub fn timers_fire_in_order(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let start = now();
    for tag in [30u64, 10, 50, 20, 40, 0] {
        rig.engine.timer_after(Duration::from_millis(tag), tag).unwrap();
    }
    rig.engine.timer_at(start + Duration::from_millis(60), 60).unwrap();
    let mut tags = Vec::new();
    while tags.len() < 7 {
        let list = fired(rig.poll(Duration::from_secs(10)));
        for tag in &list {
            assert!(
                since(start) >= Duration::from_millis(*tag),
                "the timer of {tag} ms fired at {:?}",
                since(start)
            );
        }
        tags.extend(list);
        assert!(since(start) < patience());
    }
    assert_eq!(tags, [0, 10, 20, 30, 40, 50, 60]);
    assert_eq!(rig.engine.timers(), 0);
}

pub fn timers_move_and_cancel(variant: &Variant) {
    let mut rig = Rig::with(variant.config().timers_max(3));
    let cancelled = rig.engine.timer_after(Duration::from_millis(5), 1).unwrap();
    let moved = rig.engine.timer_after(Duration::from_millis(5), 2).unwrap();
    let early = rig.engine.timer_after(Duration::from_secs(3600), 3).unwrap();
    assert!(matches!(
        rig.engine.timer_after(Duration::ZERO, 4),
        Err(Error::Limit { limit: "timers_max", value: 3 })
    ));
    assert!(rig.engine.timer_cancel(cancelled) && !rig.engine.timer_cancel(cancelled));
    assert!(rig.engine.timer_reset(moved, Duration::from_millis(800)));
    assert!(rig.engine.timer_reset(early, Duration::from_millis(10)));
    assert_eq!(fired(rig.poll_for(Duration::from_millis(45))), [3]);
    rig.until("the moved timer", |_, completion| match completion.event {
        Event::Timer { id } => {
            assert_eq!((id, completion.tag), (moved, 2));
            Some(())
        }
        other => panic!("{other:?}"),
    });
    assert!(!rig.engine.timer_reset(moved, Duration::ZERO) && !rig.engine.timer_cancel(moved));
}

pub fn an_overdue_timer_does_not_block(variant: &Variant) {
    let mut rig = Rig::new(variant);
    rig.engine.timer_after(Duration::from_millis(1), 1).unwrap();
    rig.engine.timer_at(now() - Duration::from_secs(1), 2).unwrap();
    sleep(Duration::from_millis(10));
    // Without a timeout: it must not wait.
    let mut tags = Vec::new();
    while tags.len() < 2 {
        rig.engine.poll(&mut rig.completions, None).unwrap();
        tags.extend(rig.completions.drain().map(|completion| completion.tag));
    }
    tags.sort_unstable();
    assert_eq!(tags, [1, 2]);
}

pub fn a_hundred_thousand_timers(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let ids: Vec<_> = (0..100_000u64)
        .map(|tag| rig.engine.timer_after(Duration::from_micros(tag % 5000 * 40), tag).unwrap())
        .collect();
    for id in ids.iter().step_by(2) {
        assert!(rig.engine.timer_cancel(*id));
    }
    let mut seen = vec![false; ids.len()];
    let mut count = 0;
    rig.run("all timers", |_, completion| {
        if let Some(Completion { tag, event: Event::Timer { id }, .. }) = completion {
            assert!(
                ids[tag as usize] == id
                    && tag % 2 == 1
                    && !std::mem::replace(&mut seen[tag as usize], true)
            );
            count += 1;
        }
        count == 50_000
    });
}

pub fn spinning_finds_completions_and_stops_when_idle(variant: &Variant) {
    let mut rig = Rig::with(variant.config().spin(Duration::from_millis(5)));
    let (conn, mut peer) = rig.pair();
    for _ in 0..50 {
        peer.write_all(b"x").unwrap();
        assert_eq!(rig.receive(conn, 1), b"x");
    }
    let waker = rig.engine.waker();
    for _ in 0..20 {
        let waker = waker.clone();
        let caller = spawn(move || waker.wake());
        assert_eq!(rig.engine.poll(&mut rig.completions, None).unwrap(), 1);
        assert!(matches!(rig.completions.pop().unwrap().event, Event::Woken));
        caller.join().unwrap();
    }
    // Idle: the engine stops spinning before each sleep.
    let before = rig.engine.stats();
    for _ in 0..300 {
        let start = now();
        assert_eq!(
            rig.engine.poll(&mut rig.completions, Some(Duration::from_micros(300))).unwrap(),
            0
        );
        assert!(since(start) >= Duration::from_micros(300));
    }
    let stats = rig.engine.stats();
    assert_eq!(stats.spins_found, before.spins_found);
    assert!(
        stats.spins - before.spins < 100,
        "{} spins before 300 sleeps",
        stats.spins - before.spins
    );
    assert_eq!(stats.spins > 0, variant.simulated().is_none());
}

pub fn wake_from_another_thread(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let waker = rig.engine.waker();
    for _ in 0..50 {
        let waker = waker.clone();
        let caller = spawn(move || {
            sleep(Duration::from_micros(500));
            waker.wake();
        });
        // Without a timeout: only the wake-up ends the poll.
        assert_eq!(rig.engine.poll(&mut rig.completions, None).unwrap(), 1);
        assert!(matches!(rig.completions.pop().unwrap().event, Event::Woken));
        caller.join().unwrap();
    }
    drop(rig);
    waker.wake();
}

pub fn endless_durations(variant: &Variant) {
    const ENDLESS: Duration = Duration::MAX;
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    let mut rig = Rig::new(variant);
    // More than the kernel's clock can represent, in nanoseconds and in seconds. The last one has
    // timers.
    for timeout in [ENDLESS, Duration::from_secs(12_000_000_000), 2 * CENTURY, ENDLESS] {
        let (waker, turns) = (rig.engine.waker(), rig.engine.stats().turns);
        let caller = spawn(move || {
            sleep(Duration::from_millis(20));
            waker.wake();
        });
        assert_eq!(rig.engine.poll(&mut rig.completions, Some(timeout)).unwrap(), 1);
        assert!(matches!(rig.completions.pop().unwrap().event, Event::Woken));
        let turns = rig.engine.stats().turns - turns;
        assert!(turns < 20, "it must sleep: {turns} turns");
        caller.join().unwrap();
        if timeout == 2 * CENTURY {
            let timer = rig.engine.timer_after(ENDLESS, 1).unwrap();
            rig.engine.timer_at(rig.engine.now() + CENTURY, 2).unwrap();
            assert!(rig.engine.timer_reset(timer, ENDLESS));
        }
    }
    let config = variant.config().linger(ENDLESS).fin_wait(ENDLESS).teardown_max(ENDLESS);
    let mut rig = Rig::with(config.connect_timeout(Some(ENDLESS)).idle_timeout(Some(ENDLESS)));
    let (conn, mut peer) = rig.pair();
    if variant.simulated().is_none() {
        rig.engine.as_fd().unwrap();
    }
    let options = ConnectOptions { timeout: Some(ENDLESS), ..ConnectOptions::default() };
    let (listener, _fillers) = full_listener(0);
    let connecting = rig.engine.connect(listener.local_addr().unwrap(), options).unwrap();
    rig.engine.send(conn, "bye").unwrap();
    rig.engine.send(connecting, "never").unwrap();
    rig.engine.close(conn).unwrap();
    rig.poll(Duration::from_millis(5));
    rig.engine.close_all(ENDLESS);
    rig.poll(Duration::from_millis(5));
    std::io::Read::read_exact(&mut peer, &mut [0; 3]).unwrap();
    assert!(rig.engine.is_live(connecting));
    drop(peer);
    assert_eq!(rig.wait_closed(conn).kind, CloseKind::Local);
    // The drop waits without a limit for what is in flight: one connect, which it cancels.
    drop(rig);
    drop(listener);
}

pub fn wake_storm(variant: &Variant) {
    // Eight threads count up and wake. The engine must see every count, although its polls have no
    // timeout.
    let mut rig = Rig::new(variant);
    let (count, each) = (Arc::new(AtomicUsize::new(0)), 3_000);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (count, waker) = (Arc::clone(&count), rig.engine.waker());
            spawn(move || {
                for _ in 0..each {
                    count.fetch_add(1, Ordering::SeqCst);
                    waker.wake();
                }
            })
        })
        .collect();
    let mut wakes = 0;
    while count.load(Ordering::SeqCst) < 8 * each {
        rig.engine.poll(&mut rig.completions, None).unwrap();
        wakes += rig
            .completions
            .drain()
            .filter(|completion| matches!(completion.event, Event::Woken))
            .count();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // On one core the threads may end before the first poll.
    wakes += rig.poll(Duration::ZERO).len();
    assert!((1..=8 * each).contains(&wakes), "{wakes} wake-ups");
}

pub fn wakes_are_coalesced(variant: &Variant) {
    let mut rig = Rig::new(variant);
    let waker = rig.engine.waker();
    for _ in 0..1000 {
        waker.wake();
    }
    let events = rig.poll_for(Duration::from_millis(30));
    assert!(matches!(events[..], [Completion { event: Event::Woken, .. }]), "{events:?}");
}

/// Whether a descriptor becomes readable within the timeout.
pub fn readable(fd: i32, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let deadline = now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(now()).as_millis() as i32;
        // SAFETY: one pollfd, which outlives the call.
        match unsafe { libc::poll(&mut poll, 1, left) } {
            -1 => {
                assert_eq!(std::io::Error::last_os_error().kind(), std::io::ErrorKind::Interrupted)
            }
            0 => return false,
            _ => return true,
        }
    }
}

pub fn foreign_loop(variant: &Variant) {
    // Another event loop sleeps: the descriptor of the engine must be readable when the engine has
    // work.
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    // The timeout of a poll that ended early must not make the descriptor readable later.
    peer.write_all(b"x").unwrap();
    assert_eq!(rig.poll(Duration::from_millis(40)).len(), 1);
    let fd = rig.engine.as_fd().unwrap().as_raw_fd();
    let drain = |rig: &mut Rig| {
        let mut all = Vec::new();
        for _ in 0..100 {
            let list = rig.poll(Duration::ZERO);
            if list.is_empty() {
                break;
            }
            all.extend(list);
        }
        all
    };
    drain(&mut rig);
    drain(&mut rig);
    assert!(!readable(fd, Duration::from_millis(80)), "readable without work");
    for round in 0..20u8 {
        peer.write_all(&[round]).unwrap();
        assert!(readable(fd, patience()), "round {round}");
        let mut got = Vec::new();
        let deadline = now() + patience();
        while got.is_empty() && now() < deadline {
            got = drain(&mut rig);
        }
        let [Completion { event: Event::Received(data), .. }] = &got[..] else { panic!("{got:?}") };
        assert_eq!(data[..], [round]);
    }
    rig.engine.send(conn, "staged outside of poll").unwrap();
    assert!(readable(fd, patience()), "a send is staged");
    drain(&mut rig);
    let mut bytes = [0; 22];
    std::io::Read::read_exact(&mut peer, &mut bytes).unwrap();
    for _ in 0..50 {
        if !readable(fd, Duration::from_millis(5)) {
            break;
        }
        drain(&mut rig);
    }
    rig.engine.timer_after(Duration::from_millis(30), 9).unwrap();
    drain(&mut rig);
    assert!(readable(fd, patience()));
    let mut tags = Vec::new();
    let deadline = now() + patience();
    while tags.is_empty() && now() < deadline {
        assert!(readable(fd, patience()));
        tags.extend(drain(&mut rig).iter().map(|completion| completion.tag));
    }
    assert_eq!(tags, [9]);
    for _ in 0..10 {
        drain(&mut rig);
        let waker = rig.engine.waker();
        spawn(move || waker.wake()).join().unwrap();
        assert!(readable(fd, patience()));
        let woken = drain(&mut rig);
        assert!(
            woken.iter().any(|completion| matches!(completion.event, Event::Woken)),
            "{woken:?}"
        );
    }
}

pub fn signal_storm(variant: &Variant) {
    extern "C" fn ignore(_: libc::c_int) {}
    // Without SA_RESTART, so that the signal interrupts every blocking call.
    // SAFETY: the handler does nothing, and the action is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let mut rig = Rig::new(variant);
    let (conn, mut peer) = rig.pair();
    let stop = Arc::new(AtomicBool::new(false));
    // SAFETY: takes no pointer. This thread outlives the one that sends the signals.
    let target = unsafe { libc::pthread_self() } as usize;
    let sender = {
        let stop = Arc::clone(&stop);
        spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: the target thread joins this one before it ends.
                unsafe { libc::pthread_kill(target as libc::pthread_t, libc::SIGUSR1) };
                sleep(Duration::from_micros(50));
            }
        })
    };
    let start = now();
    assert_eq!(rig.engine.poll(&mut rig.completions, Some(Duration::from_millis(50))).unwrap(), 0);
    assert!(since(start) >= Duration::from_millis(50), "a signal ended the poll early");
    let echo = spawn(move || {
        let mut bytes = vec![0; 2 << 20];
        let mut done = 0;
        while done < bytes.len() {
            done += std::io::Read::read(&mut peer, &mut bytes[done..]).unwrap();
        }
        peer.write_all(&bytes).unwrap();
        peer
    });
    rig.engine.send(conn, pattern(2 << 20)).unwrap();
    assert!(rig.receive(conn, 2 << 20) == pattern(2 << 20));
    stop.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    drop(echo.join().unwrap());
}
