package node

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/object"
)

// folderChanges, on RunDisk, holds what of services, endpoints, policies and nodes
// has changed since services.pb was saved: a file for each time that proxy and
// resolver have applied some, named by the revision. It is written before servers
// are told of that revision, so that an agent which is killed never goes back behind
// what it had acknowledged: a pod that was stopped because of it would get requests
// again. It need only survive the agent: the kernel's rules do not survive the
// machine either.
const folderChanges = "changes"

// changesMode: nobody but the agent needs them.
const changesMode fs.FileMode = 0o600

const (
	// maxChanges bounds the files; one more, and they become one. services.pb is
	// saved a second after a change, so it takes a disk that is full.
	maxChanges = 128
	// revisionDigits makes names sort as their revisions do.
	revisionDigits = 19
	// heldBack is how long an agent whose changes cannot be read waits for a server
	// before it uses services that are older than what it has acknowledged.
	heldBack = 3 * time.Second
)

// saveChanges is called before anybody is told that they are applied; nil: deleted.
func (j journal) saveChanges(revision int64, changed map[string]object.Message) error {
	part := &balsav1.AssignmentsResponse{Synced: true, Revision: revision}
	for _, key := range sortedKeys(changed) {
		if m := changed[key]; m != nil {
			part.Upserts = append(part.Upserts, object.Wrap(m))
			continue
		}
		kind, namespace, name, _ := object.ParseKey(key)
		part.Deletes = append(part.Deletes, &balsav1.ObjectKey{Kind: kind.Name, Namespace: namespace, Name: name})
	}
	data, err := proto.Marshal(part)
	if err == nil {
		err = j.run.Show(changesName(revision), data, changesMode)
	}
	if err != nil { // a file that is cut off may only be the last
		return errors.Join(fmt.Errorf("save the changes of revision %d: %w", revision, err), j.run.Remove(changesName(revision)))
	}
	return nil
}

func changesName(revision int64) string {
	return fmt.Sprintf("%s/%0*d", folderChanges, revisionDigits, revision)
}

// changes lists the revisions of the files, in order. Others' files are none.
func (j journal) changes() (revisions []int64, err error) {
	names, err := j.run.List(folderChanges)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", folderChanges, err)
	}
	for _, name := range names {
		if revision, err := strconv.ParseInt(name, 10, 64); err == nil {
			revisions = append(revisions, revision)
		}
	}
	slices.Sort(revisions)
	return revisions, nil
}

// dropChanges removes those up to a revision, which services.pb has by now.
func (j journal) dropChanges(upTo int64) error {
	revisions, err := j.changes()
	for _, revision := range revisions {
		if revision <= upTo {
			err = errors.Join(err, j.run.Remove(changesName(revision)))
		}
	}
	return err
}

// mergeChanges makes one file of more than so many: each object is in it once, so
// that together they never take more than all services do.
func (j journal) mergeChanges(most int) error {
	revisions, err := j.changes()
	if err != nil || len(revisions) <= most {
		return err
	}
	merged := map[string]object.Message{}
	last, err := j.readChanges(revisions, merged)
	if err != nil {
		return err
	}
	if err := j.saveChanges(last, merged); err != nil {
		return err
	}
	for _, revision := range revisions {
		if revision != last {
			err = errors.Join(err, j.run.Remove(changesName(revision)))
		}
	}
	return err
}

// readChanges puts changes into a map, in the order of revisions. The last file may
// be cut off: then the agent was killed while it wrote it, and told nobody.
func (j journal) readChanges(revisions []int64, into map[string]object.Message) (last int64, err error) {
	for i, revision := range revisions {
		part, err := readPart(j.run, changesName(revision))
		switch {
		case err != nil && i == len(revisions)-1:
			return last, nil
		case err != nil:
			return last, err
		}
		for key, m := range contentOf(part) {
			into[key] = m
		}
		last = revision
	}
	return last, nil
}

// contentOf is what a saved part says, by key; nil: deleted.
func contentOf(part *balsav1.AssignmentsResponse) map[string]object.Message {
	var s step
	s.add(part)
	return s.changes
}

// addChanges brings the services of a set from disk, of a revision, to those that
// were acknowledged, and returns their revision. On an error nothing is added.
func (j journal) addChanges(services int64, into map[string]object.Message) (acknowledged int64, err error) {
	revisions, err := j.changes()
	if err != nil {
		return services, err
	}
	revisions = slices.DeleteFunc(revisions, func(r int64) bool { return r <= services })
	if len(revisions) == 0 {
		return services, nil
	}
	changed := map[string]object.Message{}
	last, err := j.readChanges(revisions, changed)
	if err != nil {
		return revisions[len(revisions)-1], err
	}
	for key, m := range changed {
		if m == nil {
			delete(into, key)
			continue
		}
		into[key] = m
	}
	return max(services, last), nil
}

// held tells whether the kernel's rules have to stay as they are, since the disk
// has only services that are older than what was acknowledged: until a server has
// told what there is, or for so long; for ever, if it has none at all. Only the loop
// that applies may ask.
func (a *Agent) held() bool {
	if !a.behind {
		return false
	}
	_, fromServer, _ := a.set.known()
	late := a.cfg.Clock.Now().Sub(a.began) >= heldBack
	switch {
	case !fromServer && (a.blind || !late):
		return true
	case !fromServer:
		a.log.Warn("no server tells what there is; going on with services that are older than those before this agent was killed", "waited", heldBack)
	}
	a.behind = false
	return false
}
