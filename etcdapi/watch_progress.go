package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/balsa-run/balsa/store"
)

// allProgress is a client's question how far all watches of the stream are.
// The answer is one mark for all, so it waits for a mark of each. Watches that
// begin meanwhile belong to it as well: to the client the answer is about them too.
type allProgress struct {
	// waiting are the watches whose mark is still to come; nil when nobody asks.
	waiting map[*watch]struct{}
	// target is the newest revision when the question came: no answer is older.
	target store.Revision
	// reached is the oldest of the marks that have come; 0 before the first.
	reached store.Revision
	// again says that the client has asked anew.
	again bool
}

// askAll begins an answer for all watches. As in etcd there is none without
// watches, and none while a watch begins in the future.
func (s *watchStream) askAll() error {
	if s.all.waiting != nil {
		s.all.again = true
		return nil
	}
	s.all = allProgress{target: s.space.View().Revision()}
	waiting := map[*watch]struct{}{}
	for _, w := range s.watches {
		if w.ended {
			continue
		}
		if w.start > s.all.target {
			return nil
		}
		waiting[w] = struct{}{}
	}
	if len(waiting) == 0 {
		return nil
	}
	s.all.waiting = waiting
	for w := range waiting {
		w.feed.ask()
	}
	return nil
}

// joinAll makes a new watch part of an answer that is under way.
func (s *watchStream) joinAll(w *watch) error {
	if s.all.waiting == nil {
		return nil
	}
	if w.start > s.all.target {
		s.all = allProgress{}
		return nil
	}
	s.all.waiting[w] = struct{}{}
	w.feed.ask()
	return nil
}

// leaveAll lets an answer no longer wait for a watch that has ended.
func (s *watchStream) leaveAll(w *watch) error {
	if _, waits := s.all.waiting[w]; !waits {
		return nil
	}
	delete(s.all.waiting, w)
	return s.answerAll()
}

// answerAll answers when every mark has come.
func (s *watchStream) answerAll() error {
	if s.all.waiting == nil || len(s.all.waiting) > 0 {
		return nil
	}
	done := s.all
	s.all = allProgress{}
	if done.reached > 0 {
		if err := s.send(&pb.WatchResponse{Header: s.header(done.reached), WatchId: noWatch}); err != nil {
			return err
		}
	}
	if done.again {
		return s.askAll()
	}
	return nil
}

// askQuiet asks for marks of the watches that want them and had nothing to say.
func (s *watchStream) askQuiet() {
	for _, w := range s.watches {
		if !w.progress || w.ended {
			continue
		}
		if w.quiet {
			w.asked = true
			w.feed.ask()
		}
		w.quiet = true
	}
}

// marked takes a mark: everything of w up to rev has been sent.
func (s *watchStream) marked(w *watch, rev store.Revision) error {
	if w.asked && rev >= w.start {
		w.asked = false
		if err := s.send(&pb.WatchResponse{Header: s.header(rev), WatchId: w.id}); err != nil {
			return err
		}
	}
	if _, waits := s.all.waiting[w]; !waits {
		return nil
	}
	if rev < s.all.target {
		w.feed.ask() // the live feed is a revision behind the space
		return nil
	}
	delete(s.all.waiting, w)
	if s.all.reached == 0 || rev < s.all.reached {
		s.all.reached = rev
	}
	return s.answerAll()
}
