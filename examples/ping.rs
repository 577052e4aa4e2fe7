//! The smallest client: sends PING to a Redis server and prints the response, `+PONG`.
//! `cargo run --release --example ping -- 127.0.0.1:6379`
use proactor::{Addr, Completions, Config, ConnectOptions, Engine, Event};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addr: Addr = std::env::args().nth(1).unwrap_or("127.0.0.1:6379".into()).parse()?;

    let mut engine = Engine::new(Config::default())?; // io_uring where allowed, else epoll
    let mut completions = Completions::with_capacity(256);
    let conn = engine.connect(addr, ConnectOptions::default())?; // returns at once
    engine.send(conn, "PING\r\n")?; // leaves when the connection is there, without a copy
    while engine.is_live(conn) {
        engine.poll(&mut completions, None)?; // submits, waits, and collects completions
        for completion in completions.drain() {
            match completion.event {
                Event::Received(reply) => {
                    print!("{}", String::from_utf8_lossy(&reply));
                    engine.close(conn)?;
                }
                Event::Closed(reason) => println!("{reason}"),
                _ => {}
            }
        }
    }

    println!("backend: {}", engine.info().backend);
    Ok(())
}
