//! The smallest client: says PING to a Redis server and prints what comes back.
//! `cargo run --release --example ping -- 127.0.0.1:6379`
use proactor::{Addr, Completions, Config, ConnectOptions, Engine, Event};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr: Addr = std::env::args().nth(1).unwrap_or("127.0.0.1:6379".into()).parse()?;
    let mut engine = Engine::new(Config::default())?; // io_uring where the kernel allows it, else epoll
    let mut completions = Completions::with_capacity(256);

    let conn = engine.connect(addr, ConnectOptions::default())?; // returns at once
    engine.send(conn, "PING\r\n")?; // waits behind the connect; never copied

    loop {
        engine.poll(&mut completions, Some(Duration::from_secs(1)))?;
        for completion in completions.drain() {
            match completion.event {
                Event::Connected => println!("connected, on {}", engine.info().backend),
                Event::Received(data) => {
                    print!("{}", String::from_utf8_lossy(&data));
                    engine.close(conn)?;
                }
                Event::Closed(reason) => {
                    println!("{reason}");
                    return Ok(());
                }
                _ => {}
            }
        }
    }
}
