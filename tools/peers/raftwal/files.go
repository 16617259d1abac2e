//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// Opens are the rounds of opening a log until its last entry is read.
type Opens struct {
	Entries int `json:"entries"`
	// Warm found the files in the kernel's memory, Cold on the disk.
	Warm []Turn[float64] `json:"warmMS"`
	Cold []Turn[float64] `json:"coldMS"`
}

func takeOpens(dir string, rounds, entries int) (*Opens, error) {
	err := both(dir, func(sides []*side) error {
		return inTurns(0, sides, func(one *side) error { return one.fill(entries, fillAt) })
	})
	if err != nil {
		return nil, err
	}
	opens := &Opens{Entries: entries}
	for round := range rounds {
		for _, kept := range []struct {
			prepare func(string) error
			into    *[]Turn[float64]
		}{{readAll, &opens.Warm}, {forgetAll, &opens.Cold}} {
			var turn Turn[float64]
			err := inTurns(round, []string{boltdb, walLog}, func(kind string) (err error) {
				folder := filepath.Join(dir, kind)
				if err := kept.prepare(folder); err != nil {
					return err
				}
				*turn.of(kind), err = openTime(kind, folder, uint64(entries))
				return err
			})
			if err != nil {
				return nil, err
			}
			*kept.into = append(*kept.into, turn)
		}
	}
	return opens, nil
}

func openTime(kind, dir string, last uint64) (float64, error) {
	began := time.Now()
	s, err := open(kind, dir, 0)
	if err != nil {
		return 0, err
	}
	var entry raft.Log
	err = s.GetLog(last, &entry)
	took := milliseconds(time.Since(began))
	if err == nil && (s.next != last+1 || entry.Index != last) {
		err = fmt.Errorf("%s: the log ends at %d, expected %d", kind, s.next-1, last)
	}
	return took, errors.Join(err, s.Close())
}

// readAll brings the files of a folder into the kernel's memory.
func readAll(dir string) error {
	return eachFile(dir, func(f *os.File) error {
		_, err := io.Copy(io.Discard, f)
		return err
	})
}

// forgetAll lets the kernel drop what it holds of the files.
func forgetAll(dir string) error {
	return eachFile(dir, func(f *os.File) error {
		return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	})
}

func eachFile(dir string, do func(*os.File) error) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(do(f), f.Close())
	})
}

// Sizes are the rounds of filling a log, and deleting most of it.
type Sizes struct {
	Entries int `json:"entries"`
	Kept    int `json:"kept"`
	// Full is before, Truncated after the deletion: bytes that the file system
	// has allocated.
	Full      []Turn[int64] `json:"fullBytes"`
	Truncated []Turn[int64] `json:"truncatedBytes"`
}

// sizeAt is how many entries are appended at once: raft's most in a message.
const sizeAt = 64

func takeSizes(dir string, rounds, entries, kept int) (*Sizes, error) {
	sizes := &Sizes{Entries: entries, Kept: kept}
	for round := range rounds {
		var full, truncated Turn[int64]
		folder := filepath.Join(dir, fmt.Sprint(round))
		err := both(folder, func(sides []*side) error {
			return inTurns(round, sides, func(one *side) (err error) {
				at := filepath.Join(folder, one.kind)
				if err := one.fill(entries, sizeAt); err != nil {
					return err
				}
				if *full.of(one.kind), err = allocated(at); err != nil {
					return err
				}
				if err := one.trim(kept); err != nil {
					return err
				}
				*truncated.of(one.kind), err = allocated(at)
				return err
			})
		})
		if err := errors.Join(err, os.RemoveAll(folder)); err != nil {
			return nil, err
		}
		sizes.Full, sizes.Truncated = append(sizes.Full, full), append(sizes.Truncated, truncated)
	}
	return sizes, nil
}

// allocated is how many bytes of the disk the files of a folder occupy.
func allocated(dir string) (sum int64, err error) {
	const statBlock = 512 // stat(2)
	err = eachFile(dir, func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: the system does not tell its blocks", f.Name())
		}
		sum += stat.Blocks * statBlock
		return nil
	})
	return sum, err
}
