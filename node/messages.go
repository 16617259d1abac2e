package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"
	"github.com/balsa-run/balsa/node/pod"
	"github.com/balsa-run/balsa/node/runtime"
	"github.com/balsa-run/balsa/object"
)

// messageMode lets every user of a container write its message.
const messageMode fs.FileMode = 0o666

// messageFile names the file of an attempt's termination message.
func messageFile(uid string, k pod.AttemptKey) string {
	return fmt.Sprintf("%s/%s_%s_%d", folderMessages, uid, k.Container, k.Attempt)
}

// messages reads the last words of attempts that have exited, each once.
func (w *worker) messages(ctx context.Context, p *balsav1.Pod, state *runtime.PodState) map[pod.AttemptKey]string {
	if state == nil || p == nil {
		return nil
	}
	kept := map[pod.AttemptKey]string{}
	for _, c := range state.Containers {
		if c.Status != runtime.ContainerExited {
			continue
		}
		key := pod.AttemptKey{Container: c.Name, Attempt: c.Attempt}
		text, read := w.said[key]
		if !read {
			text = w.lastWords(ctx, p, c)
		}
		kept[key] = text
	}
	for key := range w.said {
		if _, still := kept[key]; !still {
			w.removeFile(messageFile(w.uid, key))
		}
	}
	w.said = kept
	return kept
}

func (w *worker) lastWords(ctx context.Context, p *balsav1.Pod, c runtime.ContainerState) string {
	data, err := w.a.cfg.RunDisk.Tail(messageFile(w.uid, pod.AttemptKey{Container: c.Name, Attempt: c.Attempt}), pod.MaxMessageBytes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.a.log.Warn("a termination message cannot be read", "uid", w.uid, "container", c.Name, "error", err)
	}
	if len(data) > 0 || c.Exit.Code == 0 || policyOf(p, c.Name) != object.MessageFallbackToLogsOnError {
		return strings.ToValidUTF8(string(data), "")
	}
	text, err := w.logTail(ctx, c)
	if err != nil {
		w.a.log.Warn("the log that stands for a termination message cannot be read", "uid", w.uid, "container", c.Name, "error", err)
	}
	return text
}

func policyOf(p *balsav1.Pod, name string) string {
	for _, c := range object.AllContainers(p.GetSpec()) {
		if c.GetName() == name {
			return c.GetTerminationMessagePolicy()
		}
	}
	return ""
}

// logTail is the end of an attempt's log, as much as a message may be.
func (w *worker) logTail(ctx context.Context, c runtime.ContainerState) (string, error) {
	reader, err := w.a.cfg.Runtime.OpenLog(ctx, runtime.PodUID(w.uid), c.Name, c.Attempt, runtime.LogOptions{TailLines: pod.MaxMessageLogLines})
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	for {
		line, err := reader.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return "", errors.Join(err, reader.Close())
			}
			break
		}
		text.Write(line.Text)
		if !line.Partial {
			text.WriteByte('\n')
		}
		if extra := text.Len() - pod.MaxMessageLogBytes; extra > 0 {
			text.Next(extra)
		}
	}
	return strings.ToValidUTF8(text.String(), ""), reader.Close()
}

// openMessage makes the file that an attempt writes its message to. It is made
// once: a second start of the same attempt starts nothing.
func (w *worker) openMessage(c runtime.ContainerConfig) error {
	name := messageFile(w.uid, pod.AttemptKey{Container: c.Name, Attempt: c.Attempt})
	if _, err := w.a.cfg.RunDisk.Tail(name, 1); err == nil {
		return nil
	}
	if err := w.a.cfg.RunDisk.Show(name, nil, messageMode); err != nil {
		return fmt.Errorf("make the file of the termination message: %w", err)
	}
	return nil
}

func (w *worker) removeFile(name string) {
	if err := w.a.cfg.RunDisk.Remove(name); err != nil {
		w.a.log.Warn("a file of a pod cannot be removed", "file", name, "error", err)
	}
}
