package main

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	balsav1 "github.com/balsa-run/balsa/gen/balsa/v1"

	"github.com/balsa-run/balsa/object"
)

func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}

func (s *sheet) pod(p *balsav1.Pod, now time.Time) {
	meta, spec, status := p.GetMetadata(), p.GetSpec(), p.GetStatus()
	s.identity(meta)
	s.row("Priority", count(spec.GetPriority()))
	s.row("Node", strings.TrimSuffix(spec.GetNodeName()+"/"+status.GetHostIp(), "/"))
	s.row("Start time", timeText(status.GetStartTime()))
	s.marks(meta)
	s.row("Status", summarise(p, now).status)
	if object.IsTerminating(p) {
		s.row("Ends", fmt.Sprintf("asked %s ago, has %ds", age(meta.GetDeletionTimestamp(), now), meta.GetDeletionGracePeriodSeconds()))
	}
	s.some("Reason", status.GetReason())
	s.some("Message", status.GetMessage())
	s.row("IP", status.GetPodIp())
	if owner := object.ControllerOf(p); owner != nil {
		s.row("Controlled by", owner.GetKind()+"/"+owner.GetName())
	}
	s.containers(p)
	s.conditions(status.GetConditions())
	s.volumes(spec.GetVolumes())
	s.row("QoS class", status.GetQosClass())
	s.list("Node selector", pairsOf(spec.GetNodeSelector(), "="))
	var tolerations []string
	for _, t := range spec.GetTolerations() {
		tolerations = append(tolerations, tolerationText(t))
	}
	s.list("Tolerations", tolerations)
}

func tolerationText(t *balsav1.Toleration) string {
	text := t.GetKey()
	if t.GetValue() != "" {
		text += "=" + t.GetValue()
	}
	if t.GetEffect() != "" {
		text += ":" + t.GetEffect()
	}
	if t.GetOperator() == object.TolerateExists {
		text = strings.TrimSpace(text + " op=Exists")
	}
	if t.TolerationSeconds != nil {
		text += fmt.Sprintf(" for %ds", t.GetTolerationSeconds())
	}
	return text
}

// containers are in the three lists that the spec has.
func (s *sheet) containers(p *balsav1.Pod) {
	title := ""
	for role, c := range object.AllContainers(p.GetSpec()) {
		part := map[object.ContainerRole]string{
			object.RoleInit: "Init containers", object.RoleSidecar: "Init containers", object.RoleMain: "Containers", object.RoleEphemeral: "Ephemeral containers",
		}[role]
		if part != title {
			fmt.Fprintf(s.writer, "%s:\n", part)
			title = part
		}
		s.depth++
		s.part(c.GetName(), func() {
			if role == object.RoleSidecar {
				s.row("Kind", "sidecar (restartPolicy Always)")
			}
			if role == object.RoleEphemeral {
				s.some("Target", targetOf(p, c.GetName()))
			}
			s.container(c, object.ContainerStatusFor(p, c.GetName()))
		})
		s.depth--
	}
}

func targetOf(p *balsav1.Pod, name string) string {
	for _, e := range p.GetSpec().GetEphemeralContainers() {
		if e.GetName() == name {
			return e.GetTargetContainerName()
		}
	}
	return ""
}

func (s *sheet) container(c *balsav1.Container, status *balsav1.ContainerStatus) {
	s.some("Container ID", status.GetContainerId())
	s.row("Image", c.GetImage())
	s.some("Image ID", status.GetImageId())
	var ports []string
	for _, port := range c.GetPorts() {
		ports = append(ports, strings.TrimSpace(fmt.Sprintf("%d/%s %s", port.GetContainerPort(), port.GetProtocol(), port.GetName())))
	}
	s.some("Ports", strings.Join(ports, ", "))
	s.some("Command", words(c.GetCommand()))
	s.some("Args", words(c.GetArgs()))
	s.state("State", status.GetState())
	if last := status.GetLastState(); last.GetTerminated() != nil || last.GetWaiting() != nil || last.GetRunning() != nil {
		s.state("Last state", last)
	}
	s.row("Ready", fmt.Sprint(status.GetReady()))
	s.row("Restart count", count(status.GetRestartCount()))
	s.some("Limits", strings.Join(quantities(c.GetResources().GetLimits()), ", "))
	s.some("Requests", strings.Join(quantities(c.GetResources().GetRequests()), ", "))
	s.some("Liveness", probeText(c.GetLivenessProbe()))
	s.some("Readiness", probeText(c.GetReadinessProbe()))
	s.some("Startup", probeText(c.GetStartupProbe()))
	s.some("After its start", handlerText(c.GetLifecycle().GetPostStart()))
	s.some("Before its end", handlerText(c.GetLifecycle().GetPreStop()))
	s.some("Stop signal", c.GetLifecycle().GetStopSignal())
	s.environment(c)
	s.list("Mounts", mountTexts(c.GetVolumeMounts()))
}

// words are a command line in which each word can be told from the next.
func words(list []string) string {
	var quoted []string
	for _, word := range list {
		if word == "" || strings.ContainsAny(word, " \t\n\"'\\") {
			word = fmt.Sprintf("%q", word)
		}
		quoted = append(quoted, word)
	}
	return strings.Join(quoted, " ")
}

func (s *sheet) state(title string, state *balsav1.ContainerState) {
	switch {
	case state.GetRunning() != nil:
		s.row(title, "Running")
		s.depth++
		s.row("Started", timeText(state.GetRunning().GetStartedAt()))
		s.depth--
	case state.GetTerminated() != nil:
		t := state.GetTerminated()
		s.row(title, "Terminated")
		s.depth++
		s.some("Reason", t.GetReason())
		s.some("Message", oneLine(t.GetMessage()))
		s.row("Exit code", count(t.GetExitCode()))
		if t.GetSignal() != 0 {
			s.row("Signal", count(t.GetSignal()))
		}
		s.row("Started", timeText(t.GetStartedAt()))
		s.row("Finished", timeText(t.GetFinishedAt()))
		s.depth--
	default:
		s.row(title, "Waiting")
		s.depth++
		s.some("Reason", state.GetWaiting().GetReason())
		s.some("Message", oneLine(state.GetWaiting().GetMessage()))
		s.depth--
	}
}

// oneLine keeps what programs write from looking like rows of ours.
func oneLine(text string) string {
	text = strings.TrimSpace(text)
	if strings.ContainsAny(text, "\n\t\r\x1b") {
		return fmt.Sprintf("%q", text)
	}
	return text
}

func probeText(p *balsav1.Probe) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("%s delay=%ds timeout=%ds period=%ds #success=%d #failure=%d", actionText(p.GetExec(), p.GetHttpGet(), p.GetTcpSocket(), p.GetGrpc()),
		p.GetInitialDelaySeconds(), p.GetTimeoutSeconds(), p.GetPeriodSeconds(), p.GetSuccessThreshold(), p.GetFailureThreshold())
}

func handlerText(h *balsav1.LifecycleHandler) string {
	if h.GetSleep() != nil {
		return fmt.Sprintf("sleep %ds", h.GetSleep().GetSeconds())
	}
	return actionText(h.GetExec(), h.GetHttpGet(), nil, nil)
}

func actionText(exec *balsav1.ExecAction, http *balsav1.HTTPGetAction, tcp *balsav1.TCPSocketAction, grpc *balsav1.GRPCAction) string {
	switch {
	case exec != nil:
		return "exec " + words(exec.GetCommand())
	case http != nil:
		scheme := strings.ToLower(http.GetScheme())
		if scheme == "" {
			scheme = "http"
		}
		return fmt.Sprintf("%s-get %s://%s:%s%s", scheme, scheme, http.GetHost(), portText(http.GetPort()), http.GetPath())
	case tcp != nil:
		return fmt.Sprintf("tcp-socket %s:%s", tcp.GetHost(), portText(tcp.GetPort()))
	case grpc != nil:
		return strings.TrimSpace(fmt.Sprintf("grpc :%d %s", grpc.GetPort(), grpc.GetService()))
	}
	return ""
}

func portText(p *balsav1.IntOrString) string {
	if p.GetString_() != "" {
		return p.GetString_()
	}
	return count(p.GetInt())
}

func mountTexts(mounts []*balsav1.VolumeMount) []string {
	var texts []string
	for _, m := range mounts {
		how := "rw"
		if m.GetReadOnly() {
			how = "ro"
		}
		if path := m.GetSubPath() + m.GetSubPathExpr(); path != "" {
			how += ", path " + path
		}
		if m.GetMountPropagation() != "" {
			how += ", " + m.GetMountPropagation()
		}
		texts = append(texts, fmt.Sprintf("%s from %s (%s)", m.GetMountPath(), m.GetName(), how))
	}
	return texts
}
