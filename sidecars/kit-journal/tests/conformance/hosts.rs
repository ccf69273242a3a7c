//! Several hosts in one URL: one that takes connections and says nothing does not stand in the way of the next.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use kit_journal::engine::{Action, Commit, Kept};

use crate::bench::{SINK, new_database, open, section_at, server};

/// Takes connections until the process ends, answers the wish for TLS with this, and then says nothing; its port.
fn mute(answer: Option<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut client in listener.incoming().flatten() {
            // The wish for TLS has eight bytes.
            if let Some(answer) = answer
                && client.read_exact(&mut [0; 8]).is_ok()
            {
                let _ = client.write_all(&[answer]);
            }
            held.push(client);
        }
    });
    port
}

#[test]
fn a_host_that_takes_connections_and_says_nothing_does_not_stand_in_the_way_of_the_next() {
    const EACH: Duration = Duration::from_secs(1);
    for answer in [None, Some(b'N'), Some(b'S')] {
        let url = server().url(&new_database());
        let both = format!("@127.0.0.1:{},127.0.0.1:", mute(answer));
        let section = section_at(format!("{}?connect_timeout={}", url.replace("@127.0.0.1:", &both), EACH.as_secs()));
        // With the others' tests beside it.
        let soon = |what: &str, since: Instant| assert!(since.elapsed() < EACH * 12, "{what}: {:?}", since.elapsed());

        let since = Instant::now();
        let mut opened = open(&section).unwrap_or_else(|error| panic!("{answer:?}: {}", kit::error::chain(&error)));
        soon("opening", since);
        let since = Instant::now();
        (opened.open_reader)().unwrap().statistics().unwrap();
        soon("reading", since);
        let actions = vec![Action::Register { sink: SINK.to_owned() }];
        opened.engine.commit(&mut Commit { actions, ..Commit::default() }).unwrap();
        let lease = opened.engine.lease(SINK).unwrap().unwrap();
        let since = Instant::now();
        let mut keeper = opened.engine.keeper().unwrap().unwrap();
        // It has half a second for each host, and is asked again while the lease lasts.
        let kept = loop {
            match keeper.keep(&[(SINK, lease.epoch)]) {
                Ok(kept) => break kept,
                Err(error) => assert!(since.elapsed() < EACH * 5, "{answer:?}: {}", kit::error::chain(&error)),
            }
        };
        assert_eq!(kept, [Kept::For(lease)], "kept within what a lease lasts");
    }
}
