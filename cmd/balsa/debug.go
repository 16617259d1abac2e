package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/client"
)

// debugNameLetters make names that do not spell words.
const debugNameLetters = "bcdfghjklmnpqrstvwxz2456789"

// debugStartMax bounds the wait for an image and the start.
const debugStartMax = 5 * time.Minute

func (a *app) debugCommand() *cobra.Command {
	container := &balsav1.EphemeralContainer{}
	var stdin, tty bool
	command := &cobra.Command{
		Use: "debug POD --image IMAGE [--target CONTAINER] [-it] [-- COMMAND [ARG...]]", Short: "Let a container of another image join a running pod", Args: cobra.ArbitraryArgs,
		Long: `Add an ephemeral container to a running pod: it shares the pod's network, and with
--target sees the processes of that container. It is never started again and
stays in the pod's spec until the pod is deleted.`,
		Example: "  balsa debug web-0 --image tools:1 -it -- sh\n  balsa debug web-0 --image tools:1 --target app -- ps ax",
		RunE: func(command *cobra.Command, args []string) error {
			at := command.ArgsLenAtDash()
			if at < 0 {
				at = len(args)
			}
			if at != 1 || container.Image == "" {
				return &usageError{fmt.Errorf("give one pod and --image, for example: balsa debug my-pod --image tools:1 -it -- sh")}
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			name, err := a.podNamed(command.Context(), c, args[0])
			if err != nil {
				return err
			}
			if container.Command = args[at:]; container.Name == "" {
				container.Name = debugName()
			}
			if stdin {
				container.Stdin, container.StdinOnce = new(true), new(true)
			}
			if tty = a.wantsTerminal(tty); tty {
				container.Tty = new(true)
			}
			return a.debug(command.Context(), c, name, container)
		},
	}
	flags := command.Flags()
	flags.StringVar(&container.Image, "image", "", "image of the container")
	flags.StringVar(&container.TargetContainerName, "target", "", "container whose processes it sees")
	flags.StringVarP(&container.Name, "container", "c", "", "name of the new container (default debugger-xxxxx)")
	flags.BoolVarP(&stdin, "stdin", "i", false, "hand on the standard input")
	flags.BoolVarP(&tty, "tty", "t", false, "give the program a terminal")
	return command
}

func debugName() string {
	name := []byte("debugger-")
	for range 5 {
		name = append(name, debugNameLetters[rand.N(len(debugNameLetters))])
	}
	return string(name)
}

func (a *app) debug(ctx context.Context, c *client.Client, name string, container *balsav1.EphemeralContainer) error {
	response, err := c.Pods.Debug(ctx, &balsav1.DebugRequest{Namespace: a.namespace, Name: name, Container: container})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.errOut, "container %s joins pod/%s\n", container.GetName(), name)
	waiting, cancel := context.WithTimeout(ctx, debugStartMax)
	defer cancel()
	said := ""
	pod, err := client.Wait(waiting, c, a.namespace, name, func(pod *balsav1.Pod, _ bool) (bool, string) {
		state := ephemeralState(pod, container.GetName())
		if text := state.GetWaiting().GetReason() + " " + state.GetWaiting().GetMessage(); text != " " && text != said {
			said = text
			fmt.Fprintf(a.errOut, "it waits: %s\n", text)
		}
		return state.GetRunning() != nil || state.GetTerminated() != nil, "the start of container " + container.GetName()
	})
	if err != nil {
		return fmt.Errorf("container %s of pod/%s has not started: %w", container.GetName(), name, err)
	}
	if ended := ephemeralState(pod, container.GetName()).GetTerminated(); ended != nil || !container.GetStdin() {
		return a.debugged(ctx, c, response.GetPod(), container.GetName())
	}
	return a.attachTo(ctx, c, response.GetPod(), container.GetName(), container.GetStdin(), container.GetTty())
}

func ephemeralState(pod *balsav1.Pod, name string) *balsav1.ContainerState {
	for _, status := range pod.GetStatus().GetEphemeralContainerStatuses() {
		if status.GetName() == name {
			return status.GetState()
		}
	}
	return nil
}

// debugged prints what the container prints to its end, and ends with its exit
// code.
func (a *app) debugged(ctx context.Context, c *client.Client, pod *balsav1.Pod, container string) error {
	meta := pod.GetMetadata()
	err := a.logs(ctx, c, &balsav1.LogsRequest{Namespace: meta.GetNamespace(), Name: meta.GetName(), Container: container, Follow: true}, false)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, debugStartMax)
	defer cancel()
	last, err := client.Wait(waiting, c, meta.GetNamespace(), meta.GetName(), func(pod *balsav1.Pod, _ bool) (bool, string) {
		return ephemeralState(pod, container).GetTerminated() != nil, "the exit code of container " + container
	})
	if err != nil {
		return err
	}
	if code := ephemeralState(last, container).GetTerminated().GetExitCode(); code != 0 {
		return &exitError{int(code)}
	}
	return nil
}
