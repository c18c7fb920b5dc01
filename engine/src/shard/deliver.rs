//! Delivering publications: to the subscribers of this shard, and to the shards that have some.

use std::sync::Arc;

use super::{
    ConnectionId, Context, Handler, Shard, Slot,
    envelope::{Envelope, OwnFrame, Publication},
    rules::Conflation,
    topics::{Ready, Route, Topic},
};
use crate::{
    buffer::{LocalFrame, SharedFrame},
    connection::{ConflationKey, Endpoint, OutboxFull, SendStatus, SharedStatus},
    protocol::FrameHeader,
};

impl<H: Handler> Shard<H> {
    pub(super) fn deliver_ready(&mut self) {
        while let Some(ready) = self.context.topics.poll_ready() {
            if ready.route != Route::Here {
                self.forward(&ready.publication);
            }
            if ready.route != Route::Elsewhere {
                self.deliver(&ready, None);
            }
        }
    }

    fn forward(&mut self, publication: &Publication) {
        for shard in 0..self.mesh.shards() {
            if shard == self.mesh.index() || !publication.topic.interests(shard) {
                continue;
            }
            // Those who do not hear themselves are all here.
            let publication = Publication { own: None, ..publication.clone() };
            let count = publication.count;
            match self.mesh.send(shard, Envelope::Publish(publication)) {
                Ok(()) => self.context.counters.envelopes_sent.add(1),
                Err(_) => self.context.counters.envelopes_refused.add(u64::from(count)),
            }
        }
    }

    pub(super) fn deliver(&mut self, ready: &Ready, from: Option<usize>) {
        let Self { slots, context, mesh, .. } = self;
        let publication = &ready.publication;
        // The topic may have been forgotten meanwhile, and its place be another one's.
        let is_same = |topic: &&Topic| Arc::ptr_eq(&topic.interest, &publication.topic);
        let Some(topic) = context.topics.topic(ready.topic).filter(is_same) else { return };
        let frame = LocalFrame::new(SharedFrame::new(Arc::clone(&publication.frames)));
        let key = match topic.settings.conflation {
            Conflation::Latest => Some(ConflationKey { topic: topic.number, key: publication.key }),
            Conflation::Off => None,
        };
        let full = topic.settings.full;
        let count = topic.subscribers.len();
        for position in 0..count {
            let Some(topic) = context.topics.topic(ready.topic) else { return };
            let Some(subscriber) = topic.subscribers.get(position) else { return };
            if let (Some(fence), Some(from)) = (&subscriber.fence, from)
                && fence.get(from).is_some_and(|sent| mesh.received(from) <= *sent)
            {
                continue;
            }
            let index = subscriber.slot as usize;
            let Some(slot) = slots.get_mut(index) else { continue };
            let id = ConnectionId::new(context.shard, index as u32, slot.generation);
            let (frame, messages) = match own_frames(publication, id) {
                [] => (&frame, publication.count),
                own => {
                    let Some((rest, messages)) = without_own(publication, own) else { continue };
                    (&LocalFrame::new(SharedFrame::new(rest)), messages)
                }
            };
            let Slot { endpoint, dirty, deprived, .. } = slot;
            let was_open = endpoint.is_open();
            let full = full.unwrap_or_else(|| endpoint.outbox_full(&context.settings));
            let sent = context.queue_shared(endpoint, full, frame, messages, key);
            context.list_deprived(id, deprived);
            context.counters.deliveries.add(u64::from(sent));
            // One that was given up has a close frame to send, a deadline to set, and perhaps a pause to end.
            // One whose peer does not read is not looked at for every publication: its send will come back.
            let gave_up = was_open && !endpoint.is_open();
            if (sent > 0 && endpoint.has_output() || gave_up) && !*dirty {
                *dirty = true;
                context.dirty.push(id);
            }
        }
    }
}

impl Context {
    /// Queues a publication of `messages` frames for a connection. Answers how many were queued.
    fn queue_shared(
        &mut self,
        endpoint: &mut Endpoint,
        full: OutboxFull,
        frame: &LocalFrame,
        messages: u32,
        key: Option<ConflationKey>,
    ) -> u32 {
        let bytes = frame.bytes().len();
        let limits = &self.settings.outbox;
        let drops = full == OutboxFull::DropOldest;
        if messages > 1
            && endpoint.is_open()
            && !matches!(full, OutboxFull::Close(_))
            && !endpoint.outbox().has_room(bytes, limits, drops)
        {
            return self.queue_each(endpoint, full, frame.bytes());
        }
        let mut replaced = false;
        let status = self.queue(endpoint, full, bytes, messages, key, |endpoint, context| {
            Ok(match endpoint.send_shared(frame, key, &context.settings)? {
                SharedStatus::Queued(status) => status,
                SharedStatus::Replaced => {
                    replaced = true;
                    SendStatus::Backpressure
                }
            })
        });
        if replaced {
            self.counters.conflated.add(1);
            self.note_dropped(endpoint, |drops| &mut drops.conflated, 1);
        }
        if status.is_sent() { messages } else { 0 }
    }

    /// Queues frames that came together one by one, because there is not room for all of them: those are
    /// dropped that have to be. Answers how many were queued.
    fn queue_each(&mut self, endpoint: &mut Endpoint, full: OutboxFull, mut frames: &[u8]) -> u32 {
        let mut sent = 0;
        while let Ok(Some((header, header_bytes))) = FrameHeader::decode(frames) {
            let (frame, rest) = frames.split_at(header_bytes + header.payload_bytes as usize);
            let status = self.queue(endpoint, full, frame.len(), 1, None, |endpoint, context| {
                let payload = &frame[header_bytes..];
                endpoint.send(header.opcode, payload, &context.settings, &mut context.corks)
            });
            sent += u32::from(status.is_sent());
            frames = rest;
        }
        sent
    }
}

/// The frames of a publication that connection `id` is not to hear. They are sorted by publisher.
fn own_frames(publication: &Publication, id: ConnectionId) -> &[OwnFrame] {
    let Some(own) = &publication.own else { return &[] };
    let start = own.partition_point(|frame| frame.publisher < id);
    let count = own[start..].partition_point(|frame| frame.publisher == id);
    &own[start..start + count]
}

/// The frames of a publication without those of `own`.
fn without_own(publication: &Publication, own: &[OwnFrame]) -> Option<(Vec<u8>, u32)> {
    let messages = publication.count - own.len() as u32;
    if messages == 0 {
        return None;
    }
    // No more than it needs: it counts for its bytes.
    let own_bytes: usize = own.iter().map(|frame| frame.end - frame.start).sum();
    let mut rest = Vec::with_capacity(publication.frames.len() - own_bytes);
    let mut position = 0;
    for frame in own {
        rest.extend_from_slice(&publication.frames[position..frame.start]);
        position = frame.end;
    }
    rest.extend_from_slice(&publication.frames[position..]);
    Some((rest, messages))
}
