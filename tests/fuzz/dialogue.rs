//! Conversations with one possible outcome each, however bytes are cut and whoever waits for whom:
//! every backend must come to the same one. Owns: what is said, and what each end was told.

use super::Rng;
use super::stage::Stage;
use bytes::BytesMut;
use proactor::*;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How a conversation ends, after question and answer were heard in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ClientCloses,
    /// After a last byte of the client.
    ServerCloses,
    /// The client shuts its write side behind the question; the server answers, and closes.
    HalfClose,
    ClientAborts,
    ServerAborts,
    /// Nobody listens.
    Refused,
}

#[derive(Clone, Debug)]
struct Dialogue {
    unix: bool,
    question: usize,
    answer: usize,
    /// How many sends the question is cut into.
    pieces: usize,
    /// The client receives its answer into a buffer.
    fills: bool,
    /// The server reads only after a while.
    late: bool,
    ending: Ending,
}

/// What both ends were told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    client: Side,
    server: Side,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Side {
    received: usize,
    order_kept: bool,
    read_closed: bool,
    reason: Option<(CloseKind, Option<Errno>, u64)>,
}

struct End {
    dialogue: usize,
    server: bool,
    sent: usize,
    got: usize,
    filling: bool,
    fin: bool,
}

const HEAD: usize = 4;

fn byte(dialogue: usize, at: usize) -> u8 {
    match at {
        0..HEAD => (dialogue as u32).to_le_bytes()[at],
        _ => (at.wrapping_mul(0x9e37_79b9) >> 11) as u8 ^ dialogue as u8,
    }
}

fn draw(rng: &mut Rng) -> Dialogue {
    use Ending::*;
    let endings = [ClientCloses, ServerCloses, HalfClose, ClientAborts, ServerAborts, Refused];
    let size =
        |rng: &mut Rng| HEAD + if rng.one_in(4) { rng.below(300_000) } else { rng.below(2_000) };
    let ending = endings[rng.below(endings.len())];
    Dialogue {
        unix: rng.one_in(3),
        question: size(rng),
        answer: size(rng),
        pieces: 1 + rng.below(30),
        fills: rng.one_in(3),
        late: rng.one_in(4),
        ending,
    }
}

/// One side's engine.
struct Speaker {
    engine: Engine,
    out: Completions,
    ends: HashMap<ConnId, End>,
}

/// Runs the conversations of a seed; what each came to.
///
/// # Errors
/// If something happened that must not, or nothing did for too long.
pub fn run(seed: u64, stage: &Stage) -> Result<Vec<Told>, String> {
    let mut rng = Rng::new(seed);
    let dialogues: Vec<Dialogue> = (0..6 + rng.below(10)).map(|_| draw(&mut rng)).collect();
    let mut speaker = |index| -> Result<Speaker, String> {
        let config = Config::default()
            .buffers(1 << rng.below(6), 64 << rng.below(8))
            .send_watermarks(2_048 << rng.below(8), 1_024)
            .tuning(
                Tuning::default().gather_max(1 + rng.below(64)).budget(1 + rng.below(16) as u32),
            )
            // The waits of a close are not what is compared.
            .fin_wait(Duration::from_secs(20))
            .linger(Duration::from_secs(20));
        let engine = stage.engine(index, config).map_err(|error| error.to_string())?;
        Ok(Speaker {
            engine,
            out: Completions::with_capacity(1 + rng.below(64)),
            ends: HashMap::new(),
        })
    };
    let (mut client, mut server) = (speaker(0)?, speaker(0)?);
    let listen = |server: &mut Speaker, unix| {
        let id =
            server.engine.listen(stage.address(0, unix, seed as usize), ListenOptions::default());
        id.and_then(|id| server.engine.listener_addr(id)).map_err(|error| error.to_string())
    };
    let (inet, unix) = (listen(&mut server, false)?, listen(&mut server, true)?);
    let nobody = stage.address(0, true, usize::MAX);
    let mut told = vec![Told::default(); dialogues.len()];
    for (index, dialogue) in dialogues.iter().enumerate() {
        let addr = match dialogue {
            Dialogue { ending: Ending::Refused, unix: true, .. } => nobody.clone(),
            Dialogue { ending: Ending::Refused, .. } => ([127, 0, 0, 1], 9).into(),
            Dialogue { unix: true, .. } => unix.clone(),
            _ => inet.clone(),
        };
        let mut options = ConnectOptions::default();
        // Small buffers in the kernel make for partial sends.
        options.socket.send_buffer_bytes = rng.one_in(2).then_some(4_096);
        let conn = client.engine.connect(addr, options).map_err(|error| error.to_string())?;
        client.ends.insert(
            conn,
            End { dialogue: index, server: false, sent: 0, got: 0, filling: false, fin: false },
        );
        told[index].client.order_kept = true;
        told[index].server.order_kept = true;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    for round in 0u64.. {
        let mut quiet = true;
        for (is_server, speaker) in [(false, &mut client), (true, &mut server)] {
            say(speaker, &dialogues, round)?;
            let wait =
                if stage.is_simulated() { Duration::ZERO } else { Duration::from_micros(300) };
            speaker.engine.poll(&mut speaker.out, Some(wait)).map_err(|error| error.to_string())?;
            let list: Vec<Completion> = speaker.out.drain().collect();
            quiet &= list.is_empty();
            for completion in list {
                heed(speaker, is_server, completion, &dialogues, &mut told)?;
            }
        }
        stage.step(usize::from(quiet));
        let over = told.iter().zip(&dialogues).all(|(told, dialogue)| {
            told.client.reason.is_some()
                && (told.server.reason.is_some() || dialogue.ending == Ending::Refused)
        });
        if over {
            return Ok(told);
        }
        if round > 3_000_000 || Instant::now() > deadline {
            let stuck: Vec<_> = told
                .iter()
                .zip(&dialogues)
                .filter(|(told, _)| told.client.reason.is_none() || told.server.reason.is_none())
                .collect();
            return Err(format!("stuck: {stuck:?}"));
        }
    }
    unreachable!("the loop ends by itself")
}

/// Takes note of an event, and reacts as the dialogue wants it.
fn heed(
    speaker: &mut Speaker,
    is_server: bool,
    completion: Completion,
    dialogues: &[Dialogue],
    told: &mut [Told],
) -> Result<(), String> {
    let conn = completion.conn;
    if let Event::Accepted { .. } = completion.event {
        speaker.ends.insert(
            conn,
            End { dialogue: usize::MAX, server: true, sent: 0, got: 0, filling: false, fin: false },
        );
        return Ok(());
    }
    let end = speaker.ends.get_mut(&conn).ok_or_else(|| format!("{conn} is nobody's"))?;
    let bytes = match &completion.event {
        Event::Received(data) => &data[..],
        Event::Filled(buffer) => &buffer[..],
        _ => &[],
    };
    if end.dialogue == usize::MAX && !bytes.is_empty() {
        // Heads are cut in pieces too seldom to be worth more than this: they are sent in one, and
        // read in one or byte by byte.
        let head: Vec<u8> = bytes.iter().copied().take(1).collect();
        end.dialogue = head[0] as usize;
    }
    if end.dialogue == usize::MAX {
        return match completion.event {
            Event::Closed(reason) => Err(format!("ended before a byte came: {reason}")),
            _ => Ok(()),
        };
    }
    let dialogue = &dialogues[end.dialogue];
    let side =
        if is_server { &mut told[end.dialogue].server } else { &mut told[end.dialogue].client };
    for (at, got) in bytes.iter().enumerate() {
        side.order_kept &= *got == byte(end.dialogue, end.got + at);
    }
    end.got += bytes.len();
    side.received = end.got;
    match completion.event {
        Event::Filled(_) => end.filling = false,
        Event::ReadClosed => {
            (side.read_closed, end.fin) = (true, true);
            // A half-closed client goes on listening; its end comes by itself.
            let by_itself = !end.server && dialogue.ending == Ending::HalfClose;
            let answers_first = end.server && dialogue.ending == Ending::HalfClose;
            if !by_itself && !answers_first {
                let _ = speaker.engine.close(conn);
            }
        }
        Event::Closed(reason) => {
            side.reason = Some((reason.kind, reason.errno, reason.unsent_bytes));
            speaker.ends.remove(&conn);
        }
        _ => {}
    }
    Ok(())
}

/// Says what is next, as far as the send queue takes it.
fn say(speaker: &mut Speaker, dialogues: &[Dialogue], round: u64) -> Result<(), String> {
    let mut ends: Vec<(ConnId, usize)> =
        speaker.ends.iter().map(|(conn, end)| (*conn, end.dialogue)).collect();
    ends.sort_unstable_by_key(|(_, dialogue)| *dialogue);
    for (conn, index) in ends {
        let Some(dialogue) = dialogues.get(index) else { continue };
        let end = speaker.ends.get_mut(&conn).expect("just listed");
        let engine = &mut speaker.engine;
        let last_byte =
            usize::from(matches!(dialogue.ending, Ending::ServerCloses | Ending::ServerAborts));
        let (heard, to_say) = match end.server {
            true => (dialogue.question, dialogue.answer),
            false => (dialogue.answer, dialogue.question),
        };
        if end.server && dialogue.late && round % 64 < 32 && end.got < heard {
            let _ = engine.pause_reads(conn);
        } else {
            let _ = engine.resume_reads(conn);
        }
        if end.server && end.got < heard {
            continue;
        }
        if !end.server && dialogue.fills && !end.filling && end.got < heard {
            end.filling = engine.recv_into(conn, BytesMut::new(), heard - end.got).is_ok();
        }
        let extra = if !end.server && end.got >= heard { last_byte } else { 0 };
        let piece =
            if end.server { 16_384 } else { dialogue.question.div_ceil(dialogue.pieces).max(HEAD) };
        while end.sent < to_say + extra {
            let to =
                (end.sent + piece).min(if end.sent < to_say { to_say } else { to_say + extra });
            let payload: Vec<u8> = (end.sent..to).map(|at| byte(index, at)).collect();
            match engine.send(conn, payload) {
                Ok(()) => end.sent = to,
                Err(_) => break,
            }
        }
        let said = end.sent == to_say + extra;
        match (dialogue.ending, end.server) {
            (Ending::HalfClose, false) if end.sent == to_say => drop(engine.shutdown_write(conn)),
            (Ending::HalfClose, true) if said && end.fin => drop(engine.close(conn)),
            (Ending::ClientCloses, false) if end.got == heard => drop(engine.close(conn)),
            (Ending::ClientAborts, false) if end.got == heard => drop(engine.abort(conn)),
            (Ending::ServerCloses, true) if end.got == heard + 1 => drop(engine.close(conn)),
            (Ending::ServerAborts, true) if end.got == heard + 1 => drop(engine.abort(conn)),
            _ => {}
        }
    }
    Ok(())
}
