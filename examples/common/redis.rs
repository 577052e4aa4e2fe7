//! The Redis client without its command line: pipelined SETs, then GETs. It checks each response.

use super::Failure;
use bytes::BytesMut;
use proactor::{Addr, Completions, ConnectOptions, Engine, Event};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::encode::encode;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};
use std::time::{Duration, Instant};

pub struct Report {
    pub elapsed: Duration,
    pub checked: u64,
}

/// Sets and gets `requests` keys with at most `pipeline` requests in flight. Calls `progress` with
/// the number of checked responses.
pub fn run(
    engine: &mut Engine,
    addr: Addr,
    requests: u64,
    pipeline: u64,
    mut progress: impl FnMut(u64),
) -> Result<Report, Failure> {
    let conn = engine.connect(addr, ConnectOptions::default())?;
    let mut completions = Completions::with_capacity(256);
    let (mut sent, mut checked) = (0, 0);
    let mut input = BytesMut::new();
    let start = Instant::now();
    while checked < 2 * requests {
        while sent < 2 * requests && sent - checked < pipeline {
            engine.write(conn, &command(sent, requests)?)?;
            sent += 1;
        }
        if engine.poll(&mut completions, Some(Duration::from_secs(30)))? == 0 {
            return Err(format!(
                "no response for 30 s after {checked} of {} requests",
                2 * requests
            )
            .into());
        }
        for completion in completions.drain() {
            match completion.event {
                Event::Received(data) => input.extend_from_slice(&data),
                Event::ReadClosed => {
                    return Err(format!(
                        "the server closed the connection after {checked} responses"
                    )
                    .into());
                }
                Event::Closed(reason) => return Err(reason.to_string().into()),
                _ => {}
            }
        }
        while let Some((response, len)) = decode(&input)? {
            let _ = input.split_to(len);
            check(checked, requests, &response)?;
            checked += 1;
            progress(checked);
        }
    }
    let elapsed = start.elapsed();
    engine.close(conn)?;
    let mut closed = false;
    while !closed {
        engine.poll(&mut completions, Some(Duration::from_secs(5)))?;
        closed = completions.drain().any(|completion| matches!(completion.event, Event::Closed(_)));
    }
    Ok(Report { elapsed, checked })
}

fn key(number: u64) -> String {
    format!("proactor:{number}")
}

fn value(number: u64) -> String {
    format!("value {number} {}", "x".repeat((number % 100) as usize))
}

/// The request of an index: first all SETs, then all GETs.
fn command(index: u64, requests: u64) -> Result<Vec<u8>, Failure> {
    let number = index % requests;
    let arguments = if index < requests {
        vec!["SET".into(), key(number), value(number)]
    } else {
        vec!["GET".into(), key(number)]
    };
    let frame = OwnedFrame::Array(
        arguments.into_iter().map(|text| OwnedFrame::BulkString(text.into_bytes())).collect(),
    );
    let mut bytes = vec![0; frame.encode_len(false)];
    encode(&mut bytes, &frame, false)?;
    Ok(bytes)
}

fn check(index: u64, requests: u64, response: &OwnedFrame) -> Result<(), Failure> {
    let correct = match response {
        OwnedFrame::SimpleString(text) => index < requests && text == b"OK",
        OwnedFrame::BulkString(text) => {
            index >= requests && *text == value(index % requests).into_bytes()
        }
        _ => false,
    };
    if correct {
        Ok(())
    } else {
        Err(format!("request {index}: unexpected response {response:?}").into())
    }
}
