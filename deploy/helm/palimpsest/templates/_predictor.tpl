{{/* A Deployment of predictors. Argument: a dict of `root`, `role` (champion, challenger), `component`, `values` (what
     differs) and `replicas` (none: KEDA says). */}}
{{- define "palimpsest.predictor" -}}
{{- $root := .root -}}
{{- $shared := $root.Values.predictor -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "palimpsest.fullname" $root }}-{{ .component }}
  labels:
    {{- include "palimpsest.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  {{- if hasKey . "replicas" }}
  replicas: {{ .replicas }}
  {{- end }}
  # A new one joins, has a version, and then an old one leaves.
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector:
    matchLabels:
      {{- include "palimpsest.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  template:
    metadata:
      labels:
        {{- include "palimpsest.selector" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
      annotations:
        {{- include "palimpsest.checksums" $root | nindent 8 }}
        {{- with $shared.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "palimpsest.podSpec" $root | nindent 6 }}
      terminationGracePeriodSeconds: {{ $shared.terminationGracePeriodSeconds }}
      {{- with include "palimpsest.placement" $shared }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
        - name: predictor
          {{- include "palimpsest.container" $root | nindent 10 }}
          args:
            - predict
            - --stream={{ $root.Values.stream }}
            - --role={{ .role }}
            # Not the host's name, which is the pod's cut to 63 characters. The place of one that does not come back is
            # given away after 10 s.
            - --instance=$(POD_NAME)
            - --models=/var/lib/palimpsest/models
            - --settings=/etc/palimpsest/settings.yaml
            {{- with $shared.input }}
            - --input={{ . }}
            {{- end }}
            {{- with .values.output }}
            - --output={{ . }}
            {{- end }}
            {{- range .values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          {{- $role := mustMergeOverwrite (deepCopy .values) (dict "extraEnv" (concat
                (list (dict "name" "POD_NAME" "valueFrom" (dict "fieldRef" (dict "fieldPath" "metadata.name"))))
                (default list .values.extraEnv))) }}
          {{- include "palimpsest.env" (dict "root" $root "container" "predictor" "role" $role) | nindent 10 }}
          {{- include "palimpsest.resources" .values | nindent 10 }}
          ports: [{name: http, containerPort: 9096}]
          startupProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: {{ div (add $shared.startupSeconds 4) 5 }}
          livenessProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 20
            timeoutSeconds: 10
            failureThreshold: 3
          # 503 until there is a version to serve: the first promotion makes it ready.
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
          volumeMounts:
            - {name: models, mountPath: /var/lib/palimpsest}
            {{- include "palimpsest.mounts" $root | nindent 12 }}
      volumes:
        - name: models
          emptyDir: {sizeLimit: {{ $shared.models.sizeLimit }}}
        {{- include "palimpsest.volumes" $root | nindent 8 }}
{{- end -}}
