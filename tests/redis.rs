//! A pipelining Redis client against a real server, on every backend and tier of this machine.
//! Owns: a process of redis-server. Without redis-server the test is skipped;
//! `PROACTOR_REQUIRE=redis` makes that a failure.

#[allow(unused)]
#[path = "../examples/common/mod.rs"]
mod common;

use proactor::{Addr, Backend, Config, Engine, Tier};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A redis-server on a unix socket and on a loopback port.
struct Server {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Server {
    fn start() -> Option<Server> {
        let dir = std::env::temp_dir().join(format!("proactor-redis-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // redis-server cannot choose a free port. If another process takes this one in the
        // meantime, the server does not start.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--unixsocket",
                "redis.sock",
            ])
            .args(["--save", "", "--appendonly", "no", "--dir", "."])
            .current_dir(&dir)
            .stdout(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            assert!(
                !std::env::var("PROACTOR_REQUIRE").is_ok_and(|list| list.contains("redis")),
                "no redis-server"
            );
            println!("skipped: no redis-server on this machine");
            return None;
        };
        let server = Server { child, dir, port };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
            || !server.dir.join("redis.sock").exists()
        {
            assert!(Instant::now() < deadline, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn sets_and_gets_on_every_backend() {
    let Some(server) = Server::start() else { return };
    let plain = || Config::default().ignore_environment(true);
    let mut configs = vec![("epoll".to_owned(), plain().backend(Backend::Epoll))];
    configs.extend(Tier::ALL.map(|tier| (format!("uring/{tier}"), plain().tier(tier))));
    for (name, config) in configs {
        for addr in
            [Addr::from(([127, 0, 0, 1], server.port)), Addr::Unix(server.dir.join("redis.sock"))]
        {
            let mut engine = match Engine::new(config.clone()) {
                Ok(engine) => engine,
                Err(error) => {
                    println!("skipped {name}: {error}");
                    continue;
                }
            };
            for pipeline in [1, 50] {
                let report = common::redis::run(&mut engine, addr.clone(), 500, pipeline, |_| {});
                let report = report.unwrap_or_else(|error| panic!("{name} at {addr}: {error}"));
                assert_eq!(report.checked, 1000);
            }
            println!("{name} at {addr}: checked");
        }
    }
}
