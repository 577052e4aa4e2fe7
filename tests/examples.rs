//! The examples as a user runs them, against nc, socat and each other. Owns: processes of the
//! examples and what they print. A tool that is not installed is skipped by name;
//! `PROACTOR_REQUIRE=tools` makes that a failure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const VARIANTS: &[&[&str]] = &[
    &["--backend", "epoll"],
    &["--backend", "uring", "--tier", "deferred"],
    &["--tier", "multishot"],
    &["--tier", "oneshot"],
    &["--tier", "polled"],
    &["--backend", "auto", "--disable", "incremental,multishot_accept,registered_ring_fd"],
];

/// An example's binary; `cargo test` builds them beside this one.
fn example(name: &str) -> Command {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path: PathBuf = path.join("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples` first", path.display());
    let mut command = Command::new(path);
    command
        .env_remove("PROACTOR_BACKEND")
        .env_remove("PROACTOR_TIER")
        .env_remove("PROACTOR_DISABLE");
    command
}

fn installed(tool: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|dir| dir.join(tool).exists());
    if !found {
        assert!(
            !std::env::var("PROACTOR_REQUIRE").is_ok_and(|list| list.contains("tools")),
            "no {tool}"
        );
        println!("skipped: no {tool} on this machine");
    }
    found
}

/// A running `echo_server`.
struct Server {
    child: Child,
    addr: String,
    banner: String,
}

impl Server {
    /// Starts it. `None` if this machine lacks the tier: then the error must give the reason.
    fn start(variant: &[&str]) -> Option<Server> {
        let mut command = example("echo_server");
        command.args(["--addr", "127.0.0.1:0", "--grace", "2"]).args(variant);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut banner = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut banner).unwrap();
        if banner.is_empty() {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && text.contains("is not available"), "{text}");
            println!("skipped {variant:?}: {text}");
            return None;
        }
        let addr = banner.split(' ').nth(2).expect("an address").to_owned();
        Some(Server { child, addr, banner: banner.trim_end().to_owned() })
    }

    fn port(&self) -> &str {
        self.addr.rsplit(':').next().expect("IP:PORT")
    }

    /// Stops it by a signal and returns its stderr. The exit status must be 0.
    fn stop(self, signal: i32) -> String {
        // SAFETY: the child was not waited for, so its process id is valid.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
        let output = self.child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {text}", output.status);
        text
    }
}

/// Runs a client with `input` as its standard input.
fn pipe(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn echo_server_serves_socat_nc_and_netcat() {
    for variant in VARIANTS {
        let Some(server) = Server::start(variant) else { continue };
        let fields: Vec<&str> = server.banner.split(' ').collect();
        assert!(fields.len() == 5 && fields[..2] == ["listening", "on"], "{}", server.banner);
        assert!(
            fields[3].starts_with("backend=") && fields[4].starts_with("tier="),
            "{}",
            server.banner
        );
        let bytes = random_bytes(5_000_000);
        if installed("socat") {
            let mut socat = Command::new("socat");
            socat.args(["-t", "30", "-", &format!("TCP:{}", server.addr)]);
            assert!(pipe(socat, &bytes).stdout == bytes, "socat on {variant:?}");
        }
        if installed("nc") {
            let mut nc = Command::new("nc");
            nc.args(["-N", "127.0.0.1", server.port()]);
            assert!(pipe(nc, &bytes).stdout == bytes, "nc on {variant:?}");
        }
        let mut netcat = example("netcat");
        netcat.args(["127.0.0.1", server.port()]).args(*variant);
        let output = pipe(netcat, &bytes);
        assert!(
            output.status.success() && output.stdout == bytes,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        server.stop(libc::SIGTERM);
    }
}

#[test]
fn echo_server_finishes_its_connections_after_a_signal() {
    for variant in VARIANTS {
        let Some(server) = Server::start(variant) else { continue };
        let mut client = TcpStream::connect(&server.addr).unwrap();
        let bytes = random_bytes(300_000);
        client.write_all(&bytes).unwrap();
        let mut first = [0; 1];
        client.read_exact(&mut first).unwrap();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            rest
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        let text = server.stop(libc::SIGINT);
        assert!(
            text.contains("closing 1 connections") && text.contains("bytes_received: 300000"),
            "{text}"
        );
        assert!(reader.join().unwrap() == bytes[1..]);
    }
}

#[test]
fn load_verifies_and_reports() {
    for variant in VARIANTS {
        let Some(server) = Server::start(variant) else { continue };
        for mode in ["echo", "connect", "stream"] {
            let mut load = example("load");
            load.args([
                "--addr",
                &server.addr,
                "--conns",
                "20",
                "--depth",
                "4",
                "--size",
                "1000",
                "--seconds",
                "0.3",
                "--json",
            ]);
            let output = load.args(["--mode", mode]).args(*variant).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success(),
                "{mode} on {variant:?}: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let json: serde_json::Value =
                serde_json::from_str(text.trim()).expect("one line of JSON");
            for key in [
                "requests",
                "requests_per_s",
                "p50_us",
                "p99_us",
                "p999_us",
                "cpu_us_per_request",
                "errors",
            ] {
                assert!(json[key].is_number(), "{key} in {text}");
            }
            assert!(json["requests"].as_u64() > Some(0) && json["errors"] == 0, "{text}");
            assert!(json["backend"].is_string() && json["tier"].is_string(), "{text}");
        }
        server.stop(libc::SIGTERM);
    }
}

/// A stall of the server delays one request per connection in a closed loop. With a rate it delays
/// all requests that are due in the meantime, and they must count.
#[test]
fn load_with_a_rate_counts_what_a_stall_delays() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut bytes, mut count) = (vec![0; 64], 0);
        while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {
            count += 1;
            if count == 100 {
                std::thread::sleep(std::time::Duration::from_millis(400));
            }
        }
        count
    });
    let arguments = ["--addr", &addr, "--conns", "1", "--rate", "1000", "--seconds", "1", "--json"];
    let output = example("load").args(arguments).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let due = json["requests"].as_u64().unwrap() + json["unanswered"].as_u64().unwrap();
    assert!((990..=1001).contains(&due), "{due} of 1000 were sent: {json}");
    // The stall lasts 0.4 of 1 s, so much more than the slowest hundredth of the requests is due
    // in it.
    assert!(json["p99_us"].as_u64() > Some(350_000), "{json}");
    assert!(server.join().unwrap() >= json["requests"].as_u64().unwrap());
}

#[test]
fn load_accepts_a_rate_in_mode_echo_only() {
    let output = example("load").args(["--rate", "100", "--mode", "connect"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("--rate is for mode echo"), "{text}");
    let output = example("load").args(["--rate", "0"]).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("0.01"));
}

#[test]
fn load_detects_wrong_bytes() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 64];
        while stream.read_exact(&mut bytes).is_ok() {
            bytes[40] ^= 1;
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
    });
    let output = example("load")
        .args(["--addr", &addr, "--conns", "1", "--seconds", "2", "--json"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrong bytes"), "{output:?}");
    server.join().unwrap();
}

#[test]
fn errors_of_arguments_name_the_cause() {
    let cases: &[(&str, &[&str], &str)] = &[
        ("probe", &["--disable", "warp"], "registered_ring_fd"),
        ("probe", &["--backend", "kqueue"], "epoll"),
        ("probe", &["--backend", "epoll", "--tier", "polled"], "no tiers"),
        ("probe", &["--tier", "oneshot", "--disable", "fast_poll"], "switched off"),
        ("load", &["--addr", "nowhere"], "IP:PORT"),
        ("load", &["--addr", "127.0.0.1:1", "--seconds", "0.2", "--json"], "refused"),
        ("load", &["--conns", "0"], "--conns"),
        ("echo_server", &["--addr", "203.0.113.1:1"], "EADDRNOTAVAIL"),
        ("redis_client", &["--addr", "127.0.0.1:1"], "refused"),
        ("netcat", &["127.0.0.1", "1"], "refused"),
    ];
    for (name, args, expected) in cases {
        let output = example(name).args(*args).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains(expected) && !text.contains("panicked"),
            "{name} {args:?}: {text}"
        );
    }
    for name in ["echo_server", "load", "netcat", "probe", "quickstart", "redis_client"] {
        let output = example(name).arg("--help").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(
            ["--backend", "--tier", "--disable"].iter().all(|option| text.contains(option)),
            "{name}: {text}"
        );
    }
}

#[test]
fn probe_and_quickstart_report() {
    let output = example("probe").arg("--json").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["capabilities"].as_array().map(Vec::len), Some(proactor::REQUIREMENTS.len()));
    let text = String::from_utf8(example("probe").output().unwrap().stdout).unwrap();
    assert!(
        proactor::REQUIREMENTS.iter().all(|requirement| text.contains(requirement.name)),
        "{text}"
    );
    let output = example("quickstart").args(["--seconds", "0.3", "--conns", "5"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        text.contains("requests/s")
            && text.contains("epoll/none")
            && text.contains("defer_taskrun"),
        "{text}"
    );
}
