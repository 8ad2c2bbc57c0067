<%inherit file="base.mako"/>
<%namespace name="parts" file="parts.mako"/>
<%def name="title()">Cancel</%def>
<article class="narrow">
<h1>Cancel?</h1>
<p>The ${'verification of' if verification else 'operation on'} the backup <strong>${shown.named(backup.display_name, backup.id)}</strong>, which is
${shown.state(backup.status)} now, ends.
% if verification:
A verification leaves the backup as it is; damaged objects that it has found stay known.</p>
% else:
A backup that is being made ends with the status <em>error</em>; the target of a restore stays half written.</p>
% endif
<form method="post" action="${base}/now/${backup.id}/cancel">
% if verification:
<input type="hidden" name="verification" value="true">
% endif
<button class="danger">Cancel it</button>
<a class="button quiet" href="${base}/now">Let it go on</a>
</form>
${parts.same(f'POST /v3/{backup.project_id}/backups/{backup.id}/action', '{"os-backupfw-cancel": {"verification": true}}' if verification else '{"os-backupfw-cancel": {}}', f'backupfw backup cancel {"--verification " if verification else ""}{backup.id}')}
</article>
