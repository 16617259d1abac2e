package apiserver

import (
	"time"

	"github.com/balsa-run/balsa/pki"
)

// Limits bounds everything a caller can make the server do or hold. The zero
// value of a field means its default; an error that meets a limit names it.
type Limits struct {
	// MessageBytes bounds one request message, decompressed.
	MessageBytes int
	// ListItems bounds the objects of one page of List.
	ListItems int
	// ListBytes bounds the stored bytes of one page of List; the page ends early.
	ListBytes int
	// Requests bounds unary calls in flight, RequestsPerIdentity those of one
	// identity other than a server's.
	Requests            int
	RequestsPerIdentity int
	// Streams and StreamsPerIdentity are the same for streaming calls.
	Streams            int
	StreamsPerIdentity int
	// WatchBuffer bounds the batches that wait in memory for a slow watcher;
	// beyond them it reads from history.
	WatchBuffer int
	// BookmarkEvery is how often a quiet Watch tells how far it has come.
	BookmarkEvery time.Duration
	// ProgressEvery is the same for a node's Assignments.
	ProgressEvery time.Duration
	// ContactEvery is how often a server looks whether it still hears a leader.
	ContactEvery time.Duration
	// SendStall is how long one message of a stream may wait for its reader.
	SendStall time.Duration
	// WriteAttempts bounds how often a write is planned anew after a conflict.
	WriteAttempts int
	// StepBytes bounds the stored bytes of one message of Assignments.
	StepBytes int
	// ReportPods and ReportEvents bound one ReportStatus.
	ReportPods   int
	ReportEvents int
	// OrphanChildren bounds what one Delete with propagation Orphan sets free.
	OrphanChildren int
	// ArchiveBytes bounds one imported archive.
	ArchiveBytes int64
	// ChunkBytes is the size of a message that carries part of a blob.
	ChunkBytes int
	// Imports bounds archives that are being imported at once.
	Imports int
	// TokenTTL is the longest life of a join token.
	TokenTTL time.Duration
	// IdentityTTL is the longest life of a user's certificate; the authority signs
	// none for longer than its default.
	IdentityTTL time.Duration
}

// DefaultLimits returns the limits of a production server.
func DefaultLimits() Limits {
	return Limits{
		MessageBytes:        4 << 20,
		ListItems:           5000,
		ListBytes:           8 << 20,
		Requests:            8192,
		RequestsPerIdentity: 2048,
		Streams:             16384,
		StreamsPerIdentity:  512,
		WatchBuffer:         256,
		BookmarkEvery:       10 * time.Second,
		ProgressEvery:       time.Second,
		ContactEvery:        500 * time.Millisecond,
		SendStall:           30 * time.Second,
		WriteAttempts:       10,
		StepBytes:           1 << 20,
		ReportPods:          512,
		ReportEvents:        256,
		OrphanChildren:      100,
		ArchiveBytes:        4 << 30,
		ChunkBytes:          256 << 10,
		Imports:             2,
		TokenTTL:            30 * 24 * time.Hour,
		IdentityTTL:         pki.UserLeafMax,
	}
}

// withDefaults fills the fields that are zero.
func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	fill(&l.MessageBytes, d.MessageBytes)
	fill(&l.ListItems, d.ListItems)
	fill(&l.ListBytes, d.ListBytes)
	fill(&l.Requests, d.Requests)
	fill(&l.RequestsPerIdentity, d.RequestsPerIdentity)
	fill(&l.Streams, d.Streams)
	fill(&l.StreamsPerIdentity, d.StreamsPerIdentity)
	fill(&l.WatchBuffer, d.WatchBuffer)
	fill(&l.BookmarkEvery, d.BookmarkEvery)
	fill(&l.ProgressEvery, d.ProgressEvery)
	fill(&l.ContactEvery, d.ContactEvery)
	fill(&l.SendStall, d.SendStall)
	fill(&l.WriteAttempts, d.WriteAttempts)
	fill(&l.StepBytes, d.StepBytes)
	fill(&l.ReportPods, d.ReportPods)
	fill(&l.ReportEvents, d.ReportEvents)
	fill(&l.OrphanChildren, d.OrphanChildren)
	fill(&l.ArchiveBytes, d.ArchiveBytes)
	fill(&l.ChunkBytes, d.ChunkBytes)
	fill(&l.Imports, d.Imports)
	fill(&l.TokenTTL, d.TokenTTL)
	fill(&l.IdentityTTL, d.IdentityTTL)
	return l
}

func fill[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
