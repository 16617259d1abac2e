package memlog

import (
	"bytes"

	"github.com/hashicorp/raft"
)

// Log is the disk's log store.
func (d *Disk) Log() raft.LogStore { return logStore{d} }

type logStore struct{ d *Disk }

func (l logStore) FirstIndex() (uint64, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	return l.d.low, nil
}

func (l logStore) LastIndex() (uint64, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	return l.d.high, nil
}

func (l logStore) GetLog(index uint64, out *raft.Log) error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	entry, ok := l.d.log[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*out = *entry
	return nil
}

func (l logStore) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l logStore) StoreLogs(entries []*raft.Log) error {
	return l.d.syncParts(WriteAppend, &write{parts: len(entries), do: func(parts int) {
		for _, entry := range entries[:parts] {
			kept := *entry
			kept.Data = bytes.Clone(entry.Data)
			l.d.log[entry.Index] = &kept
			if l.d.low == 0 {
				l.d.low = entry.Index
			}
			l.d.high = max(l.d.high, entry.Index)
		}
	}})
}

func (l logStore) DeleteRange(low, high uint64) error {
	return l.d.sync(WriteTruncate, func() {
		if low, high = max(low, l.d.low), min(high, l.d.high); low > high || high == 0 {
			return
		}
		for i := low; i <= high; i++ {
			delete(l.d.log, i)
		}
		if low <= l.d.low {
			l.d.low = high + 1
		}
		if high >= l.d.high {
			l.d.high = low - 1
		}
		if l.d.low > l.d.high {
			l.d.low, l.d.high = 0, 0
		}
	})
}

// FlipEntry turns one bit of the data of an entry that chance chooses: chance
// gets a number and gives a smaller one. It returns the entry's index, or 0 when
// there is none with data. Nobody notices here, as cluster/raftlog would not.
func (d *Disk) FlipEntry(chance func(n int) int) (index uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var with []uint64
	for i := d.low; i <= d.high && d.low > 0; i++ {
		if entry := d.log[i]; entry != nil && len(entry.Data) > 0 {
			with = append(with, i)
		}
	}
	if len(with) == 0 {
		return 0
	}
	index = with[chance(len(with))]
	damaged := *d.log[index]
	damaged.Data = flipped(damaged.Data, chance)
	d.log[index] = &damaged
	return index
}

func flipped(data []byte, chance func(n int) int) []byte {
	out := bytes.Clone(data)
	out[chance(len(out))] ^= 1 << chance(8)
	return out
}
