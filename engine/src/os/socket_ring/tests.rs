//! The ring on pairs of sockets, with a kernel that has one, and what is done without.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use monoio::{LegacyDriver, RuntimeBuilder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::{
    buffer::{BufferClass, HEADROOM_BYTES, LeasePool},
    os::probe_ring,
};

/// Runs `test` with a ring, where there can be one, and without.
fn with_each(test: impl Fn(SocketRing<usize>)) {
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().build().expect("a runtime");
    runtime.block_on(async {
        if let Ok(flags) = probe_ring() {
            test(SocketRing::with_ring(flags));
        }
        test(SocketRing::without_ring());
    });
}

fn pair() -> (Socket, UnixStream) {
    let (ours, peer) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket of our own");
    (Socket::new(ours.into()).expect("a runtime"), peer)
}

fn owned(bytes: &[u8]) -> SendBuffer {
    SendBuffer::owned(bytes.to_vec(), 0)
}

fn fill(socket: &Socket) {
    while socket.try_send(&[0; 4096]).is_ok() {}
}

#[test]
fn each_socket_gets_its_own_bytes() {
    with_each(|mut sockets| {
        for count in [1, FEW, FEW + 1, BATCH_MAX] {
            let mut pairs: Vec<_> = (0..count).map(|_| pair()).collect();
            for (tag, (socket, _)) in pairs.iter().enumerate() {
                sockets.push_send(tag, socket, owned(&tag.to_ne_bytes()));
            }
            assert_eq!(sockets.is_full(), count == BATCH_MAX);
            let results: Vec<_> =
                sockets.carry_out().map(|(tag, _, result)| (tag, result.expect("room"))).collect();
            assert!(results.into_iter().eq((0..count).map(|tag| (tag, 8))));
            for (tag, (_, peer)) in pairs.iter_mut().enumerate() {
                let mut received = [0; 8];
                peer.read_exact(&mut received).expect("eight bytes");
                assert_eq!(usize::from_ne_bytes(received), tag);
            }
        }
    });
}

#[test]
fn a_socket_says_what_it_has_not_taken() {
    with_each(|mut sockets| {
        let (full, _peer) = pair();
        fill(&full);
        let (lost, peer) = pair();
        drop(peer);
        let ((narrow, _narrow_peer), (wide, _wide_peer)) = (pair(), pair());
        let large = vec![7; 4 << 20];
        sockets.push_send(0, &full, owned(b"no room"));
        sockets.push_send(1, &lost, owned(b"nobody"));
        sockets.push_send(2, &narrow, owned(&large));
        sockets.push_send(3, &wide, owned(b"room"));
        let results: Vec<_> = sockets.carry_out().map(|(_, _, result)| result).collect();
        let [no_room, nobody, part, all] = &results[..] else { panic!("four results") };
        assert_eq!(no_room.as_ref().map_err(io::Error::kind).err(), Some(io::ErrorKind::WouldBlock));
        assert_eq!(nobody.as_ref().map_err(io::Error::kind).err(), Some(io::ErrorKind::BrokenPipe));
        assert!(part.as_ref().is_ok_and(|sent| (1..large.len()).contains(sent)), "{part:?}");
        assert!(all.as_ref().is_ok_and(|sent| *sent == 4), "{all:?}");
    });
}

/// Runs `test` with a ring, where there can be one, and a pool to receive with.
fn with_ring(test: impl Fn(SocketRing<usize>, LeasePool)) {
    with_each(|sockets| {
        if sockets.has_room_for_receive() {
            test(sockets, LeasePool::new(1 << 20, 0));
        }
    });
}

fn lease(pool: &LeasePool) -> Lease {
    pool.lease(BufferClass::Small).expect("below the cap")
}

fn is_readable(sockets: &SocketRing<usize>) -> bool {
    let ring = sockets.watch().expect("a ring").expect("a descriptor");
    // SAFETY: the socket has the descriptor open.
    let descriptor = unsafe { BorrowedFd::borrow_raw(ring.raw()) };
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).expect("a descriptor") == 1
}

/// What has completed, as text.
fn taken(sockets: &mut SocketRing<usize>) -> Vec<(usize, String)> {
    let count = sockets.completed_len();
    let received = (0..count).filter_map(|_| sockets.take());
    let text = |Received { tag, result, mut lease }: Received<usize>| {
        let bytes = result.map(|bytes| lease.received(bytes)[HEADROOM_BYTES..].to_vec());
        (tag, bytes.map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into()))
    };
    received.map(text).collect()
}

#[test]
fn a_receive_completes_when_something_arrives() {
    with_ring(|mut sockets, pool| {
        let (socket, mut peer) = pair();
        let (other, mut early) = pair();
        early.write_all(b"early").expect("room");
        sockets.push_receive(1, &socket, lease(&pool));
        sockets.push_receive(2, &other, lease(&pool));
        assert_eq!(sockets.carry_out().count(), 0);
        assert!(is_readable(&sockets));
        assert_eq!(taken(&mut sockets), [(2, "early".to_owned())]);
        assert!(!is_readable(&sockets));
        peer.write_all(b"late").expect("room");
        assert!(is_readable(&sockets));
        assert_eq!(taken(&mut sockets), [(1, "late".to_owned())]);
        sockets.push_receive(3, &socket, lease(&pool));
        drop(peer);
        assert_eq!(sockets.carry_out().count(), 0);
        assert_eq!(taken(&mut sockets), [(3, String::new())]);
        assert_eq!(pool.leased(), 0);
    });
}

#[test]
fn a_receive_stands_behind_the_sends() {
    with_ring(|mut sockets, pool| {
        for sends in 1..=FEW + 1 {
            let (socket, other) = UnixStream::pair().expect("a pair of sockets");
            other.set_nonblocking(true).expect("a socket of our own");
            let [socket, other] = [socket, other].map(|end| Socket::new(end.into()).expect("a runtime"));
            sockets.push_receive(0, &other, lease(&pool));
            (0..sends).for_each(|tag| sockets.push_send(tag, &socket, owned(b"a")));
            assert_eq!(sockets.carry_out().count(), sends);
            assert_eq!(taken(&mut sockets), [(0, "a".repeat(sends))]);
        }
    });
}

#[test]
fn a_receive_stands_behind_all_batches() {
    with_ring(|mut sockets, pool| {
        let (socket, peer) = pair();
        let peer = Socket::new(peer.into()).expect("a runtime");
        sockets.push_receive(0, &peer, lease(&pool));
        (0..BATCH_MAX).for_each(|tag| sockets.push_send(tag, &socket, owned(b"a")));
        assert_eq!(sockets.carry_out().count(), BATCH_MAX);
        assert_eq!(sockets.completed_len(), 0);
        sockets.push_send(BATCH_MAX, &socket, owned(b"z"));
        assert_eq!(sockets.carry_out().count(), 1);
        assert_eq!(taken(&mut sockets), [(0, "a".repeat(BATCH_MAX) + "z")]);
    });
}

#[test]
fn a_refused_send_hides_no_receive() {
    with_ring(|mut sockets, pool| {
        let (full, _peer) = pair();
        fill(&full);
        let pairs: Vec<_> = (0..FEW + 1).map(|_| pair()).collect();
        for (tag, (socket, mut peer)) in pairs.iter().map(|(socket, peer)| (socket, peer)).enumerate() {
            peer.write_all(b"hello").expect("room");
            sockets.push_receive(tag, socket, lease(&pool));
            sockets.push_send(tag, &full, owned(b"no room"));
        }
        assert_eq!(sockets.carry_out().filter(|(_, _, result)| result.is_err()).count(), FEW + 1);
        assert!(is_readable(&sockets));
        assert_eq!(taken(&mut sockets), (0..=FEW).map(|tag| (tag, "hello".to_owned())).collect::<Vec<_>>());
    });
}

#[test]
fn a_cancelled_receive_gives_its_buffer_back() {
    with_ring(|mut sockets, pool| {
        let (socket, mut peer) = pair();
        let number = sockets.push_receive(1, &socket, lease(&pool));
        assert_eq!(sockets.carry_out().count(), 0);
        assert!(sockets.receives().eq([(number, &1)]));
        sockets.cancel(number);
        assert_eq!(sockets.carry_out().count(), 0);
        let canceled = io::Error::from_raw_os_error(ECANCELED).to_string();
        assert_eq!(taken(&mut sockets), [(1, canceled)]);
        // Too late, and harmless.
        let number = sockets.push_receive(2, &socket, lease(&pool));
        peer.write_all(b"hello").expect("room");
        assert_eq!(sockets.carry_out().count(), 0);
        sockets.cancel(number);
        assert_eq!(sockets.carry_out().count(), 0);
        assert_eq!(taken(&mut sockets), [(2, "hello".to_owned())]);
        assert_eq!((pool.leased(), sockets.has_receives()), (0, false));
    });
}

#[test]
fn a_ring_that_fails_is_done_without() {
    with_ring(|mut sockets, pool| {
        // It refuses every submission.
        let builder = IoUring::builder().setup_r_disabled().clone();
        sockets.ring = Some(builder.build(SUBMISSION_ENTRIES).expect("a ring"));
        let mut pairs: Vec<_> = (0..5).map(|_| pair()).collect();
        for (tag, (socket, _)) in pairs.iter().enumerate() {
            sockets.push_receive(tag, socket, lease(&pool));
            sockets.push_send(tag, socket, owned(b"hello"));
        }
        assert_eq!(sockets.carry_out().filter(|(_, _, result)| result.is_ok()).count(), 5);
        assert!(sockets.is_broken() && !sockets.has_room_for_receive());
        for (_, peer) in &mut pairs {
            let mut received = [0; 6];
            assert_eq!(peer.read(&mut received).expect("five bytes"), 5, "sent once");
        }
        let canceled = io::Error::from_raw_os_error(ECANCELED).to_string();
        assert!(taken(&mut sockets).into_iter().eq((0..5).map(|tag| (tag, canceled.clone()))));
        sockets.push_receive(5, &pairs[0].0, lease(&pool));
        assert_eq!(sockets.carry_out().count(), 0);
        assert_eq!((taken(&mut sockets), pool.leased()), (vec![(5, canceled)], 0));
    });
}

#[test]
fn what_is_pending_when_the_ring_ends_keeps_its_buffer() {
    with_ring(|mut sockets, pool| {
        let (socket, _peer) = pair();
        sockets.push_receive(1, &socket, lease(&pool));
        assert_eq!(sockets.carry_out().count(), 0);
        drop(sockets);
        assert_eq!(pool.leased(), 1);
    });
}
